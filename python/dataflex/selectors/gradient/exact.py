"""A round that is scored by whole gradients (:mod:`dataflex.gradients.exact`)."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dataflex.gradients.exact import (
    ExactTargets,
    cosines_of,
    exact_scores,
    exact_targets,
)
from dataflex.gradients.policy import halves_agreement, whole_rows
from dataflex.gradients.reliability import Reliability, target_reliability
from dataflex.gradients.similarity import Aggregate, Scores, check_members, check_signal, direction_places
from dataflex.gradients.turns import Cosines, choose_by
from dataflex.models.fingerprint import fingerprint
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.gradient.report import unusual_targets
from dataflex.selectors.gradient.targets import TargetGradients
from dataflex.types import group_names

_ROWS = 4096
"""Candidates whose cosines are looked at together."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The evaluation side of a round.

    Attributes:
        targets: The directions that count.
        aggregate: Rule over the targets.
        reliability: How far two halves of the targets agree.
        unusual: Ids of the targets that are not finite (left out) and zero (cosine 0).
        facts: What fixes the directions, JSON-able.
    """

    targets: ExactTargets
    aggregate: Aggregate
    reliability: Reliability
    unusual: dict[str, list[str]]
    facts: dict[str, Any]


def compare(
    context: SelectionContext, gradients: TargetGradients, *, task_column: str, seed: int, description: str
) -> Compared:
    """Make the directions of the targets; the ranks share the work.

    Args:
        context: The selection's context.
        gradients: The targets' gradients.
        task_column: Column that holds a sample's task.
        seed: Seed of the reliability's splits and sketches.
        description: For the progress bar.

    Raises:
        SelectionError: No target is left (of a task), or there is no signal.
    """
    groups = group_names(gradients.samples, task_column)
    place, names = direction_places(gradients.aggregate, groups)
    places = [place(row) for row in range(len(groups))]
    found = exact_targets(context, gradients.features, gradients.factors, places, seed=seed, description=description)
    not_finite = np.flatnonzero(~np.isfinite(found.squares)).tolist()
    zero = np.flatnonzero(found.squares == 0).tolist()
    unusual = unusual_targets(not_finite, zero, gradients.samples)
    check_members(dict(enumerate(found.counts)), names)
    check_signal(found.vectors, sum(found.counts))
    if 0 in found.counts:  # targets that are left out, where each has a direction of its own
        found = replace(found, vectors=found.vectors[[bool(count) for count in found.counts]])

    def blocks() -> list[tuple[int, Tensor]]:
        return [(0, found.sketches)]

    agreement = target_reliability(
        whole_rows(blocks(), gradients.factors),
        len(groups),
        seed=seed,
        groups=[str(group) for group in groups] if gradients.aggregate == "task_max" else (),
        leave_out={*not_finite, *zero},
    )
    facts = {
        **gradients.features.facts(),
        "batch_tokens": gradients.features.batch_tokens,
        "parts": fingerprint([[list(map(float, own)) for own in gradients.factors], places]),
    }
    reliability = replace(agreement, answers=halves_agreement(blocks(), gradients.factors))
    return Compared(found, gradients.aggregate, reliability, unusual, facts)


def choose_exactly(
    sums: Tensor, compared: Compared, count: int, seed: Sequence[int]
) -> tuple[NDArray[np.int64], Scores]:
    """The candidates to train on, best first, and the scores of all.

    Args:
        sums: Squares and inner products of all candidates.
        compared: What they were compared with.
        count: Candidates to choose.
        seed: Of the order of turns.

    Raises:
        SelectionError: Fewer candidates have a usable score.
    """
    scores = exact_scores(sums)

    def cosines() -> Cosines:
        for start in range(0, len(sums), _ROWS):
            yield start, cosines_of(sums[start : start + _ROWS])

    def prefer() -> Tensor:
        return compared.targets.vectors.any(dim=1)

    return choose_by(cosines, prefer, scores, count, compared.aggregate, seed), scores


def forget_others(folder: Path) -> None:
    """Remove the scores of other rounds, which have been used, beside those in ``folder``."""
    for path in sorted(folder.parent.glob("step-*")):
        if path != folder:
            shutil.rmtree(path, ignore_errors=True)  # another rank may see the same folder
