"""What a run selected and how long it took: as tables on the terminal and as ``report.html``."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataflex.report.read import RunReport, read_report
from dataflex.report.sheets import Sheet, sheets
from dataflex.utils.files import write_text
from dataflex.utils.shown import shown

CELL = 80
"""Longest text in a cell of a table on the terminal, in characters; the page shows more."""
WIDTH = 120
"""Columns of the tables where there is no terminal."""
OUTPUTS = {
    "adapter_model.safetensors": "adapter",
    "model.safetensors": "model",
    "selections": "scores and ranks of all candidates, a file a selection",
    "mixtures": "shares of the domains, a file a mixture",
    "rollouts": "sampled answers with their rewards",
    "trainer_log.jsonl": "losses and learning rates",
    "training_loss.png": "loss plot",
    "report.html": "this report",
    "config.yaml": "resolved configuration",
}


def print_report(output_dir: Path, *, page: bool = True) -> None:
    """Print the report to the terminal and write ``report.html``.

    Args:
        output_dir: Folder of a finished run.
        page: Write the page; a run that has just ended has written its own.

    Raises:
        DataError: The folder is not that of a finished run, or a file of it is damaged.
    """
    report = read_report(output_dir)
    tables = sheets(report)
    if page:
        write_html(report, tables)
    console = Console(markup=False, emoji=False, highlight=False, width=shutil.get_terminal_size((WIDTH, 0)).columns)
    for sheet in tables:
        console.print(Text(shown(sheet.title, CELL), style="bold"))
        console.print(_table(sheet))
        if sheet.note:
            console.print(Text(shown(sheet.note)))
    console.print("outputs in", Text(shown(report.output_dir), style="bold"))
    for name, meaning in OUTPUTS.items():
        if (output_dir / name).exists():
            console.print(f"  {name:<28}{meaning}")


def write_html(report: RunReport, tables: Sequence[Sheet] | None = None) -> None:
    """Write ``report.html``: one file, no scripts, every value escaped.

    Args:
        report: What the run left.
        tables: Its tables, where they have been made already: counting a million rows takes seconds.
    """
    tables = sheets(report) if tables is None else tables
    source = files("dataflex.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, finalize=shown).from_string(source)
    plot = (report.output_dir / "training_loss.png").exists()
    text = page.render(name=report.output_dir.absolute().name, sheets=tables, plot=plot)
    write_text(report.output_dir / "report.html", text)


def _table(sheet: Sheet) -> Table:
    table = Table()
    for place, column in enumerate(sheet.head):
        table.add_column(Text(column), justify="left" if place < sheet.texts else "right")
    for place, row in enumerate(sheet.rows):
        table.add_row(*(Text(shown(cell, CELL)) for cell in row), style="yellow" if place in sheet.marked else None)
    return table
