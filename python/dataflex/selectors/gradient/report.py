"""What is said about a round: how reliable its target is, and which samples could not be used."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dataflex.gradients.reliability import Reliability
from dataflex.gradients.similarity import Aggregate, Scores, report_broken
from dataflex.types import Sample, group_names
from dataflex.utils.reliability import LOW, needed_cosine
from dataflex.utils.shown import listed

logger = logging.getLogger(__name__)


def say_reliability(found: Reliability, remedy: str) -> None:
    """Log how far the targets' direction can be trusted; a warning says what to change where it cannot."""
    logger.info("reliability of the target: %s", found.describe())
    if found.low:
        logger.warning(
            "the direction of the targets is mostly noise (reliability %s; below %.1f the ranking may be little "
            "better than chance); what helps: %s",
            found.describe(),
            LOW,
            remedy,
        )


def score_words(aggregate: Aggregate) -> str:
    """What a score is, for people."""
    over = {
        "mean": "the mean over all targets",
        "max": "the largest over the targets",
        "task_max": "the mean over a task's targets, of the task where that is largest",
        "round_robin": "the largest over the targets",
    }
    return (
        f"the cosine of the row's gradient with those of the targets, {over[aggregate]}: above 0 a step on the row "
        "helps them, below 0 it works against them, 1 is the most there is"
    )


def target_note(samples: Sequence[Sample], what: str, aggregate: str, task_column: str) -> str:
    """What can be said beforehand about how far the target can be trusted: what it will rest on.

    Args:
        samples: The targets.
        what: What each of them is.
        aggregate: Rule over the targets.
        task_column: Column that holds a sample's task.
    """
    counts = Counter(group_names(samples, task_column)) if aggregate == "task_max" else Counter()
    apart = len(counts) > 1  # one task is no different from no tasks
    sizes = [size for size in counts.values() if size > 1] or [1] if apart else [len(samples)]
    tasks = f" in {len(counts)} tasks" if apart else ""
    needed = needed_cosine(min(sizes))
    if needed is None:
        return f"the target rests on {len(samples)} {what}{tasks}: too few for halves, its reliability stays unknown"
    of = f" of a task of {min(sizes)}" if apart else ""
    return (
        f"the target rests on {len(samples)} {what}{tasks}; its reliability is measured by the selection, and reaches "
        f"{LOW} where the gradients of two{of} have a cosine of {needed:.2f} on average"
    )


def unusual_targets(not_finite: Sequence[int], zero: Sequence[int], samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Ids of the targets without a usable direction, which are warned about.

    Args:
        not_finite: Positions of those whose gradient is not finite.
        zero: Positions of those whose gradient is zero.
        samples: All targets.
    """
    ids = {"not_finite": [samples[row].id for row in not_finite], "zero": [samples[row].id for row in zero]}
    report_broken("evaluation", ids["not_finite"])
    if zero:
        logger.warning("%d evaluation samples have a gradient of zero: %s", len(zero), listed(ids["zero"]))
    return ids


def report_unusable(scores: Scores, samples: Sequence[Sample]) -> None:
    """Warn about candidates without a score, by id."""
    report_broken("training", [samples[row].id for row in scores.not_finite])
    if scores.zero:
        ids = [samples[row].id for row in scores.zero]
        logger.warning("%d training samples have a gradient of zero and are left out: %s", len(ids), listed(ids))


def with_candidates(report: Mapping[str, Any], scores: Scores) -> dict[str, Any]:
    """What the report says about the targets, and the counts of the candidates."""
    not_finite, zero = len(scores.not_finite), len(scores.zero)
    left_out = {
        "candidates with a gradient that is not finite": not_finite,
        "candidates with a gradient of zero": zero,
    }
    return {
        "candidates": {"total": len(scores.values), "not_finite": not_finite, "zero": zero},
        **report,
        "left_out": {**report.get("left_out", {}), **left_out},
    }
