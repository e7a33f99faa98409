"""The report on the terminal, and its page written beside what it is of."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataflex.report.page import write_page
from dataflex.report.read import read_report
from dataflex.report.sections import lay_out
from dataflex.report.table import Sheet
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
    "weights": "weights and losses of the samples of each step",
    "rollouts": "sampled answers with their rewards",
    "trainer_log.jsonl": "losses and learning rates",
    "training_loss.png": "loss plot",
    "report.html": "this report, with pictures",
    "config.yaml": "resolved configuration",
}


def print_report(place: Path, *, page: bool = True) -> Path:
    """Print the report to the terminal and write its page.

    Args:
        place: Folder of a run, or a subset of ``dataflex select``.
        page: Write the page; a run that has just ended has written its own.

    Returns:
        Where the page is.

    Raises:
        DataError: There is nothing to report on, or a file is damaged.
    """
    report = read_report(place)
    pages = lay_out(report)
    if page:
        write_page(report, pages)
    console = terminal()
    for sheet in pages.sheets:
        print_sheet(console, sheet)
    for question, answer in pages.summary.lines():
        console.print(Text(question, style="bold"), Text(shown(answer)))
    console.print("outputs in", Text(shown(report.output_dir), style="bold"))
    for name, meaning in OUTPUTS.items():
        if (report.output_dir / name).exists():
            console.print(f"  {name:<28}{meaning}")
    if report.page.exists():
        console.print("look at", Text(shown(report.page), style="bold"), soft_wrap=True)
    return report.page


def terminal() -> Console:
    """Where tables are printed: as wide as the terminal, no markup."""
    width = shutil.get_terminal_size((WIDTH, 0)).columns
    return Console(markup=False, emoji=False, highlight=False, width=width)


def print_sheet(console: Console, sheet: Sheet) -> None:
    """Print a table with its title and its note."""
    console.print(Text(shown(sheet.title, CELL), style="bold"))
    table = Table()
    for column in sheet.columns:
        table.add_column(Text(shown(column.name, CELL)), justify="left" if column.kind == "text" else "right")
    for place, row in enumerate(sheet.cells):
        table.add_row(*(Text(shown(cell, CELL)) for cell in row), style="yellow" if place in sheet.marked else None)
    console.print(table)
    if sheet.note:
        console.print(Text(shown(sheet.note)))
