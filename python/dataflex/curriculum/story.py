"""The numbers and the lines that a curriculum leaves of its plan and its selections, as a person reads them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dataflex.curriculum.schedule import Phase
from dataflex.selectors.base import Selection
from dataflex.utils.facts import flat, number_text, numbers
from dataflex.utils.shown import listed

logger = logging.getLogger(__name__)

_MOST_STEPS = 8
_RELIABILITY = "selection_reliability/"


def selection_statistics(selection: Selection, previous: Sequence[int], total: float) -> dict[str, float | int]:
    """Numbers about a selection for logs and trackers.

    Args:
        selection: The new selection.
        previous: Positions that the last one chose; empty before the first.
        total: Seconds that the selection took.

    Returns:
        ``selection_round``, ``selected``; where the method has scores their mean over the chosen and over all usable
        candidates, and ``selection_looked_at``, how many have one, if not all were looked at; ``selection_overlap``,
        the share of the chosen that the last selection chose too; how reliable the target was, where the selector
        knows; and the seconds of each phase that the selector reports, and in all.
    """
    statistics: dict[str, float | int] = {
        "selection_round": selection.round,
        "selected": len(selection.indices),
    }
    if selection.scores is not None:
        usable = selection.scores[np.isfinite(selection.scores)]
        statistics["selection_mean_score"] = float(selection.scores[selection.indices].mean())
        statistics["selection_mean_score_of_all"] = float(usable.mean())
        if np.isnan(selection.scores).any():
            statistics["selection_looked_at"] = int(np.sum(~np.isnan(selection.scores)))
    if previous:
        statistics["selection_overlap"] = float(np.isin(selection.indices, previous).mean())
    for what, value in numbers(selection.report.get("reliability")).items():
        statistics[f"selection_reliability/{what}"] = round(value, 4)
    for phase, seconds in numbers(selection.report.get("seconds")).items():
        statistics[f"selection_seconds/{phase.replace(' ', '_')}"] = round(seconds, 3)
    return {**statistics, "selection_seconds/total": round(total, 3)}


def plan_line(phases: Sequence[Phase], global_batch: int, candidates: int, what: str = "selection") -> str:
    """How long the run is, and where it selects or mixes."""
    steps = [phase.start for phase in phases if phase.round is not None]
    shown = ", ".join(map(str, steps[:_MOST_STEPS])) + (", ..." if len(steps) > _MOST_STEPS else "")
    where = f"{what}s at step{'s' if len(steps) > 1 else ''} {shown}" if steps else f"no {what}"
    return f"training on {candidates:,} rows: {phases[-1].stop:,} steps of {global_batch:,}; {where}"


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
    if "selection_looked_at" in statistics:
        parts.append(f"{statistics['selection_looked_at']:,} looked at")
    if "selection_mean_score" in statistics:
        of_all = number_text(statistics["selection_mean_score_of_all"])
        which = "all of these" if "selection_looked_at" in statistics else "all rows"
        parts.append(f"mean score {number_text(statistics['selection_mean_score'])} (of {which} {of_all})")
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


def log_mixture(names: Sequence[str], proportions: NDArray[np.float64], step: int, origin: str) -> None:
    """Log a mixture: its largest shares."""
    order = np.argsort(-proportions, kind="stable").tolist()
    shares = listed([f"{names[place]} {proportions[place]:.1%}" for place in order])
    logger.info("mixture at step %s (%s): %s", f"{step:,}", origin, shares)
