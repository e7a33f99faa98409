"""Cosine influence of candidates on targets, and the choice of the best.

With features phi, the score of candidate i under mean aggregation is

    s_i = (1 / q) sum_j cos(phi_i, phi_j) = <phi_i / |phi_i|, (1 / q) sum_j phi_j / |phi_j|>,

one inner product with a mean direction: nothing of size n x q is formed. The other rules are a maximum over several
directions: ``max`` has one direction a target, ``task_max`` the mean direction of each task (LESS, arXiv 2402.04333).
``round_robin`` has one direction a target too, and lets the targets choose in turns (:mod:`dataflex.gradients.turns`).

Features of several model states (LESS's checkpoints) count with weights eta_c that sum to one. The sum goes inside the
maximum, as in LESS:

    s_i = max_d sum_c eta_c <phi_ci / |phi_ci|, direction_cd>.

Features stream by in blocks. Inner products are exact sums (:mod:`dataflex.gradients.products`), so that equal rows
have equal scores whatever block they lie in, and ties go to the smaller index.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataflex.errors import SelectionError
from dataflex.gradients.products import cosines, split_rows
from dataflex.utils.shown import listed

logger = logging.getLogger(__name__)

Aggregate = Literal["mean", "max", "task_max", "round_robin"]
Blocks = Iterable[tuple[int, Tensor]]
"""(first row, ``(rows, k)`` features), the rows in order without gaps."""


@dataclass(frozen=True, slots=True)
class Influence:
    """Features of the candidates in one model state, and what they are compared with.

    Attributes:
        blocks: Features of the n candidates.
        directions: ``(d, k)`` float64 from :func:`target_directions`.
        weight: eta_c.
    """

    blocks: Blocks
    directions: Tensor
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of all candidates and why some have none.

    Attributes:
        values: ``(n,)`` float64; -inf for the rows below.
        not_finite: Rows with a feature that is not finite (in any of the model states).
        zero: Other rows whose features are all zero (in every model state).
    """

    values: NDArray[np.float64]
    not_finite: list[int]
    zero: list[int]


def normalized_rows(features: Tensor) -> Tensor:
    """Rows of unit length in float64; zero rows stay zero, rows with a non-finite entry become NaN.

    Args:
        features: ``(n, k)`` floating point.
    """
    rows = features.to(torch.float64)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit: Tensor = rows / norms.masked_fill(norms == 0, 1.0)
    return unit.masked_fill_(~torch.isfinite(norms), float("nan"))


def unusual_rows(blocks: Blocks) -> tuple[list[int], list[int]]:
    """Rows with a value that is not finite, and rows that are all zero."""
    not_finite: list[int] = []
    zero: list[int] = []
    for start, features in blocks:
        finite = torch.isfinite(features).all(dim=1)
        not_finite += (start + (~finite).nonzero().flatten()).tolist()
        zero += (start + (finite & ~features.any(dim=1)).nonzero().flatten()).tolist()
    return not_finite, zero


def target_directions(
    blocks: Blocks,
    aggregate: Aggregate = "mean",
    groups: Sequence[str | None] = (),
    *,
    leave_out: Collection[int] = (),
) -> Tensor:
    """Directions whose largest inner product with a unit candidate is its score.

    Args:
        blocks: Features of the q targets; zero rows count, with a cosine of 0.
        aggregate: Rule over the targets.
        groups: Task of each target, for ``task_max``.
        leave_out: Rows that do not count.

    Returns:
        ``(1, k)``, ``(targets, k)`` or ``(tasks, k)`` float64; tasks in the order of their first target.

    Raises:
        SelectionError: No target is left (of a task), one is not finite, a task is missing, or there is no signal: the
            targets' features are all zero or cancel out, so that every candidate would score 0.
    """
    places, names = direction_places(aggregate, groups)
    sums: dict[int, Tensor] = {}
    counts: dict[int, int] = {}
    for start, features in blocks:
        unit = normalized_rows(features)
        for row in (row for row in range(start, start + len(features)) if row not in leave_out):
            place = places(row)
            sums[place] = sums[place] + unit[row - start] if place in sums else unit[row - start]
            counts[place] = counts.get(place, 0) + 1
    check_members(counts, names)
    directions = torch.stack([sums[place] / counts[place] for place in sorted(sums)])
    if not torch.isfinite(directions).all():
        raise SelectionError("evaluation features hold values that are not finite; leave those rows out first")
    check_signal(directions, sum(counts.values()))
    return directions


def direction_places(aggregate: Aggregate, groups: Sequence[str | None] = ()) -> tuple[Callable[[int], int], list[str]]:
    """What maps a target to the number of its direction, and the names of the directions that have one.

    Args:
        aggregate: Rule over the targets.
        groups: Task of each target, for ``task_max``.

    Raises:
        SelectionError: A task is missing.
    """
    if aggregate in ("max", "round_robin"):  # every target has a direction of its own
        return (lambda row: row), []
    names = _group_of_each(aggregate, groups)
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    return (lambda row: order[names[row]] if names else 0), list(order)


def check_members(counts: Mapping[int, int], names: Sequence[str]) -> None:
    """See that every direction has a target.

    Args:
        counts: Targets by the number of their direction.
        names: Names of the directions, if they have some.

    Raises:
        SelectionError: One has none.
    """
    if not any(counts.values()):
        raise SelectionError("no evaluation sample is left to compare with")
    empty = [name for place, name in enumerate(names) if not counts.get(place)]
    if empty:
        raise SelectionError(f"no evaluation sample of task {empty[0]!r} is left to compare with")


def check_signal(directions: Tensor, targets: int) -> None:
    """See that the directions ``(d, ...)`` of so many targets are not all zero.

    Raises:
        SelectionError: They are: every candidate would score 0.
    """
    if not directions.any():
        raise SelectionError(
            f"no evaluation sample carries a signal: the gradients of the {targets} targets are all zero or "
            "cancel out, and every candidate would score 0",
            hint="do the trained parameters change the model's answers at all? look at them, at the evaluation set and "
            "at the rewards",
        )


def influence_scores(parts: Sequence[Influence], num_rows: int) -> Scores:
    """Score every candidate while its features stream by.

    Args:
        parts: One a model state; all with the same rows in the same blocks and with as many directions.
        num_rows: n.
    """
    values = np.full(num_rows, -np.inf)
    not_finite: list[int] = []
    zero: list[int] = []
    for start, cosines_of_rows, finite, nonzero in influences(parts):
        values[start : start + len(finite)] = cosines_of_rows.amax(dim=1).numpy()
        not_finite += (start + (~finite).nonzero().flatten()).tolist()
        zero += (start + (finite & ~nonzero).nonzero().flatten()).tolist()
    return Scores(values, not_finite, zero)


def influences(parts: Sequence[Influence]) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Weighted cosines of every candidate with every direction, while its features stream by.

    Args:
        parts: As for :func:`influence_scores`.

    Yields:
        ``(first row, (rows, d) float64, (rows,) bool, (rows,) bool)``: cosines, -inf for unusable rows; which rows are
        finite, and which have a direction.
    """
    directions = [split_rows(part.directions) for part in parts]
    for states in zip(*(part.blocks for part in parts), strict=True):
        start = states[0][0]
        if len({(first, len(features)) for first, features in states}) > 1:
            raise ValueError("the model states' features must come in the same blocks")
        total, finite, nonzero = None, torch.tensor(True), torch.tensor(False)
        for part, own, (_, features) in zip(parts, directions, states, strict=True):
            rows = split_rows(features)
            weighted = part.weight * cosines(rows, own)  # (rows, d)
            total = weighted if total is None else total + weighted
            finite, nonzero = finite & rows.finite, nonzero | rows.nonzero
        assert total is not None
        yield start, total.masked_fill(~(finite & nonzero)[:, None], float("-inf")), finite, nonzero


def top_k(scores: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Positions of the ``count`` largest scores, best first, ties by position.

    Raises:
        SelectionError: Fewer than ``count`` scores are usable (above -inf).
    """
    usable = int(np.sum(scores > -np.inf))
    if count > usable:
        raise SelectionError(
            f"{count} samples are to be selected and {usable} of {len(scores)} candidates have a usable score"
        )
    return np.argsort(-scores, kind="stable")[:count].astype(np.int64)


def _group_of_each(aggregate: Aggregate, groups: Sequence[str | None]) -> list[str]:
    """The task of every target for ``task_max``, else nothing."""
    if aggregate != "task_max":
        return []
    names = [group for group in groups if group is not None]
    if not names or len(names) < len(groups):
        raise SelectionError(
            "aggregate 'task_max' needs the task of every evaluation sample",
            hint="name the column with task_column, or use aggregate: mean",
        )
    return names


def report_broken(what: str, ids: Sequence[str]) -> None:
    """Warn about samples whose gradient is not finite, by id."""
    if ids:
        logger.warning(
            "%d %s samples have a gradient that is not finite and are left out: %s", len(ids), what, listed(ids)
        )
