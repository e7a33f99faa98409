"""What a run selected and how long it took: as a table on the terminal and as ``report.html``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
from jinja2 import Environment
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataflex.errors import DataError
from dataflex.utils.files import write_text
from dataflex.utils.shown import shown

NO_TASK = "(none)"
CELL = 80
"""Longest name in a table, in characters."""
OUTPUTS = {
    "adapter_model.safetensors": "adapter",
    "selections": "scores and ranks of all candidates, a file a selection",
    "rollouts": "sampled answers with their rewards",
    "trainer_log.jsonl": "losses and learning rates",
    "training_loss.png": "loss plot",
    "report.html": "this report",
    "config.yaml": "resolved configuration",
}


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One task among all candidates and among the selected.

    Attributes:
        task: Value of the task column.
        candidates: Rows of this task.
        share: Their share of all candidates.
        selected: Rows of this task that were selected, over the given selections.
        selected_share: Their share of all selected rows.
        mean_score: Mean of their finite scores, None where the selector has none.
    """

    task: str
    candidates: int
    share: float
    selected: int
    selected_share: float
    mean_score: float | None

    @property
    def lift(self) -> float:
        """Share among the selected over share among the candidates."""
        return self.selected_share / self.share


@dataclass(frozen=True, slots=True)
class SelectionFile:
    """A selection as the run stored it: facts of the schema's metadata and the columns."""

    facts: Mapping[str, Any]
    tasks: list[str | None]
    scores: list[float | None]
    chosen: list[bool]


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything that the report shows."""

    output_dir: Path
    results: Mapping[str, Any]
    selections: list[SelectionFile]

    @property
    def groups(self) -> list[GroupRow]:
        """Rows of all selections together, most selected first."""
        return group_rows(self.selections)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by kind of work; a selection is split into its parts."""
        spent = dict(self.results.get("seconds", {}))
        parts: dict[str, float] = {}
        for selection in self.selections:
            for name, value in selection.facts.get("report", {}).get("seconds", {}).items():
                parts[f"selection: {name}"] = parts.get(f"selection: {name}", 0.0) + value
        if parts and "selection" in spent:
            parts["selection: other"] = max(spent.pop("selection") - sum(parts.values()), 0.0)
        return {**spent, **parts}


def read_report(output_dir: Path) -> RunReport:
    """Read what a run left in its output folder.

    Raises:
        DataError: The folder is not that of a finished run.
    """
    results = output_dir / "all_results.json"
    if not results.exists():
        raise DataError(f"{output_dir} holds no finished run: all_results.json is missing")
    files = sorted((output_dir / "selections").glob("step-*.parquet"), key=lambda path: int(path.stem.split("-")[1]))
    return RunReport(output_dir, json.loads(results.read_text(encoding="utf-8")), [_read_selection(f) for f in files])


def group_rows(selections: Sequence[SelectionFile]) -> list[GroupRow]:
    """Count candidates and selected rows by task over several selections of the same candidates."""
    if not selections:
        return []
    tasks = [task or NO_TASK for task in selections[0].tasks]
    chosen_total = sum(sum(selection.chosen) for selection in selections)
    rows = []
    for task in dict.fromkeys(tasks):
        members = [index for index, other in enumerate(tasks) if other == task]
        selected = sum(selection.chosen[index] for selection in selections for index in members)
        values = [selection.scores[index] for selection in selections for index in members]
        scores = [score for score in values if score is not None and score > float("-inf")]
        rows.append(
            GroupRow(
                task,
                len(members),
                len(members) / len(tasks),
                selected,
                selected / chosen_total,
                fmean(scores) if scores else None,
            )
        )
    return sorted(rows, key=lambda row: (-row.selected, row.task))


def print_report(output_dir: Path) -> None:
    """Print the report to the terminal and write ``report.html``.

    Raises:
        DataError: The folder is not that of a finished run.
    """
    report = read_report(output_dir)
    write_html(report)
    console = Console(markup=False, emoji=False, highlight=False)
    if report.groups:
        console.print(_group_table(report))
    console.print(_time_table(report.seconds))
    console.print("outputs in", Text(shown(report.output_dir), style="bold"))
    for name, meaning in OUTPUTS.items():
        if (output_dir / name).exists():
            console.print(f"  {name:<28}{meaning}")


def write_html(report: RunReport) -> None:
    """Write ``report.html``: one file, no scripts, every value escaped."""
    source = files("dataflex.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, finalize=shown).from_string(source)
    text = page.render(report=report)
    write_text(report.output_dir / "report.html", text)


def _group_table(report: RunReport) -> Table:
    rounds = len(report.selections)
    name = report.selections[0].facts.get("selector", "?")
    table = Table(title=Text(f"{shown(name, 60)}: {rounds} selection{'s' if rounds > 1 else ''}"), title_justify="left")
    for column in ("task", "rows", "share", "selected", "share of selected", "lift", "mean score"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for row in report.groups:
        score = "-" if row.mean_score is None else f"{row.mean_score:+.4f}"
        cells = [str(row.candidates), f"{row.share:.1%}", str(row.selected), f"{row.selected_share:.1%}"]
        table.add_row(Text(shown(row.task, CELL)), *cells, f"{row.lift:.2f}x", score)
    return table


def _time_table(seconds: Mapping[str, float]) -> Table:
    table = Table(title="time", title_justify="left")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for name, value in seconds.items():
        table.add_row(Text(shown(name, CELL)), f"{value:.1f}")
    table.add_section()
    table.add_row("total", f"{sum(seconds.values()):.1f}")
    return table


def _read_selection(path: Path) -> SelectionFile:
    table = pq.read_table(path)
    facts = json.loads((table.schema.metadata or {}).get(b"dataflex", b"{}"))
    columns = {name: table.column(name).to_pylist() for name in ("task", "score", "chosen")}
    return SelectionFile(facts, columns["task"], columns["score"], columns["chosen"])
