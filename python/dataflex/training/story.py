"""The lines that a run logs: its plan, steps, selections and evaluations, as a person reads them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dataflex.selectors.base import Selection
from dataflex.training.schedule import Phase
from dataflex.utils.facts import flat, numbers
from dataflex.utils.progress import duration

logger = logging.getLogger(__name__)

_MOST_STEPS = 8
_RELIABILITY = "selection_reliability/"


def plan_line(phases: Sequence[Phase], global_batch: int, candidates: int) -> str:
    """How long the run is, and where it selects."""
    steps = [phase.start for phase in phases if phase.round is not None]
    shown = ", ".join(map(str, steps[:_MOST_STEPS])) + (", ..." if len(steps) > _MOST_STEPS else "")
    where = f"selections at step{'s' if len(steps) > 1 else ''} {shown}" if steps else "no selection"
    return f"training on {candidates:,} rows: {phases[-1].stop:,} steps of {global_batch:,}; {where}"


def log_line(entry: Mapping[str, Any]) -> str | None:
    """A log entry of a step or an evaluation as a line; None for one of a selection, which says more about itself."""
    step, total = entry["current_steps"], entry["total_steps"]
    if "selection_round" in entry:
        return None
    if "loss" in entry:
        parts = [f"loss {_number(entry['loss'])}", f"learning rate {entry['learning_rate']:.3g}"]
        if "grad_norm" in entry:
            parts.append(f"gradient norm {_number(entry['grad_norm'])}")
        if entry.get("remaining_time") is not None and step < total:
            parts.append(f"{duration(entry['remaining_time'])} left")
        return f"step {step:,} of {total:,}: {', '.join(parts)}"
    found = [f"{key} {_number(value)}" for key, value in entry.items() if key.startswith("eval_")]
    return f"evaluation at step {step:,}: {', '.join(found)}"


def log_selection(selection: Selection, candidates: int, statistics: Mapping[str, float | int]) -> None:
    """Log what a selection chose; the arguments are those of :func:`selection_line`."""
    logger.info("%s", selection_line(selection, candidates, statistics))
    for line in selection_details(selection):
        logger.debug("%s", line)


def selection_line(selection: Selection, candidates: int, statistics: Mapping[str, float | int]) -> str:
    """What a selection chose.

    Args:
        selection: The selection.
        candidates: n.
        statistics: Its numbers for the log.
    """
    parts = [f"{len(selection.indices):,} of {candidates:,} rows by {selection.selector}"]
    if "selection_mean_score" in statistics:
        of_all = _number(statistics["selection_mean_score_of_all"])
        parts.append(f"mean score {_number(statistics['selection_mean_score'])} (of all rows {of_all})")
    if "selection_overlap" in statistics:
        parts.append(f"{statistics['selection_overlap']:.0%} of them chosen last time too")
    parts += [
        f"reliability of the {name.removeprefix(_RELIABILITY)} {value:.2f}"
        for name, value in statistics.items()
        if name.startswith(_RELIABILITY)
    ]
    parts.append(f"{statistics['selection_seconds/total']:.1f} s")
    return f"selection {selection.round} at step {selection.step:,}: {', '.join(parts)}"


def selection_details(selection: Selection) -> list[str]:
    """The seconds of its phases, what was left out, and what else the selector says, a line each."""
    seconds, left_out = numbers(selection.report.get("seconds")), numbers(selection.report.get("left_out"))
    facts = {key: value for key, value in selection.report.items() if key not in ("seconds", "left_out")}
    lines = {
        "seconds": ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()),
        "left out": ", ".join(f"{count:,.0f} {name}" for name, count in left_out.items() if count),
        "facts": ", ".join(f"{name} {value}" for name, value in flat(facts)),
    }
    return [f"selection {selection.round}: {name}: {text}" for name, text in lines.items() if text]


def step_details(step: int, values: Mapping[str, float], seconds: float) -> str:
    """One step, whether or not it is logged."""
    norm = f", gradient norm {_number(values['grad_norm'])}" if "grad_norm" in values else ""
    return f"step {step:,}: loss {_number(values['loss'])}{norm}, {seconds:.2f} s"


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4g}"
