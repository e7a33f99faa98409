"""Results as a JSON document, Markdown tables and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dataflex.utils.files import atomic_path
from measuring.goals import MEGABYTE, Measured, Outcome
from measuring.machine import describe
from measuring.timing import FLOOR, OURS

COLOURS = {"floor": "#7d8590", "ours": "#1f7f5c", "baseline": "#2f6fb7", "peer": "#7d52b8"}
INK, LINES = "#24292f", "#d0d7de"
LABELS = {"floor": "floor", "ours": "dataflex", "baseline": "plain torch", "peer": "other packages"}


def document(facts: dict[str, Any], results: Sequence[Measured], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything that was measured, JSON-able: seconds a call for all parameters, one entry a round."""
    return {
        "machine": facts,
        "goals": [asdict(outcome) for outcome in outcomes],
        "results": [
            {
                "rows": result.rows,
                "parameters": result.parameters,
                "dim": result.dim,
                "name": result.name,
                "role": result.role,
                "measured_share_of_parameters": result.share,
                "stored_bytes": result.stored,
                "extra_memory_bytes": result.times.memory,
                "wall_seconds": result.times.wall,
                "processor_seconds_per_thread": result.times.processor,
            }
            for result in results
        ],
    }


def markdown(facts: dict[str, Any], results: Sequence[Measured], outcomes: Sequence[Outcome]) -> str:
    """The report: where it ran, the goals, one table for each k, and memory."""
    parts = [describe(facts), *_goal_table(outcomes)]
    for dim in sorted({result.dim for result in results}):
        parts += ["", f"k = {dim}: milliseconds a row, wall median (processor median a thread)", ""]
        parts += _time_table([result for result in results if result.dim == dim])
    parts += ["", "~: measured on the first parameters alone and scaled; times are linear in their number."]
    return "\n".join([*parts, *_memory_table(results)]) + "\n"


def _goal_table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    if not outcomes:
        return
    yield from ("", "| goal (b = 32, k = 4096) | p | measured | by processor time | met |", "|---|---|---|---|---|")
    for outcome in outcomes:
        processor = "" if outcome.processor is None else number(outcome.processor)
        met = "yes" if outcome.met else "**no**"
        yield f"| {outcome.text} | {outcome.parameters:.0e} | {number(outcome.value)} | {processor} | {met} |"


def _time_table(results: Sequence[Measured]) -> Iterator[str]:
    """Contenders down, (p, b) across."""
    cases = list(dict.fromkeys((result.parameters, result.rows) for result in results))
    cells = {(result.name, result.parameters, result.rows): cell(result) for result in results}
    yield "| | " + " | ".join(f"p = {parameters:.0e}, b = {rows}" for parameters, rows in cases) + " |"
    yield "|---" * (len(cases) + 1) + "|"
    for name in dict.fromkeys(result.name for result in results):
        shown = f"**{name}**" if any(r.name == name and r.role == OURS for r in results) else name
        yield f"| {shown} | " + " | ".join(cells.get((name, *case), "") for case in cases) + " |"


def cell(result: Measured) -> str:
    """Wall and processor milliseconds a row; ~ marks a scaled measurement."""
    mark = "~" if result.share < 1 else ""
    processor = result.per_row_processor()
    return f"{mark}{number(result.per_row())}" + ("" if processor is None else f" ({number(processor)})")


def _memory_table(results: Sequence[Measured]) -> Iterator[str]:
    """Memory of the largest batch and smallest p at each k; what the kinds of dataflex take does not depend on p."""
    rows, parameters = max(result.rows for result in results), min(result.parameters for result in results)
    shown = [r for r in results if (r.rows, r.parameters) == (rows, parameters) and r.role != FLOOR]
    yield from ("", f"Memory in MB, p = {parameters:.0e}, b = {rows}:", "")
    yield from ("| | k | taken during a call | kept between calls |", "|---|---|---|---|")
    for result in shown:
        memory = result.times.memory if result.share == 1 or result.role == OURS else None
        taken = "" if memory is None else f"{memory / MEGABYTE:,.0f}"
        kept = "" if result.stored is None else f"{result.stored / MEGABYTE:,.0f}"
        yield f"| {result.name} | {result.dim} | {taken} | {kept} |"


def number(value: float) -> str:
    """Three significant digits, without exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def plot(path: str | Path, facts: dict[str, Any], results: Sequence[Measured]) -> None:
    """Bars of the largest batch, smallest p and k, on a logarithmic axis; format by suffix (.png, .svg, .pdf)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = max(result.rows for result in results)
    parameters, dim = min(result.parameters for result in results), min(result.dim for result in results)
    shown = [r for r in results if (r.rows, r.parameters, r.dim) == (rows, parameters, dim)]
    shown.sort(key=Measured.per_row, reverse=True)
    mpl.rcParams["svg.hashsalt"] = "dataflex"  # the same figure gives the same bytes
    figure = Figure(figsize=(8, 0.36 * len(shown) + 1.5), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([r.name for r in shown], [r.per_row() for r in shown], color=[COLOURS[r.role] for r in shown])
    axes.bar_label(bars, [_bar_text(r) for r in shown], padding=4, color=INK, fontsize=9)
    axes.set_xscale("log")
    axes.margins(x=0.12)
    axes.set_xlabel(f"milliseconds a row, logarithmic (b = {rows}, p = {parameters:,}, k = {dim})", color=INK)
    axes.set_title(f"Adam-normalised gradients to random features, {facts['threads']} threads", color=INK, loc="left")
    axes.tick_params(which="both", colors=INK, length=0)
    axes.grid(axis="x", color=LINES, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    roles = list(dict.fromkeys(r.role for r in reversed(shown)))
    axes.legend(handles=[Patch(color=COLOURS[role], label=LABELS[role]) for role in roles], frameon=False)
    path = Path(path)
    with atomic_path(path) as temporary:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)


def _bar_text(result: Measured) -> str:
    return ("~" if result.share < 1 else "") + number(result.per_row())
