"""What is said about a round: how reliable its target is, and which samples could not be used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from dataflex.gradients.features import report_broken
from dataflex.gradients.reliability import LOW, Reliability
from dataflex.gradients.similarity import Scores
from dataflex.types import Sample
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
