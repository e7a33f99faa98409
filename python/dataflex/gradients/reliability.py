"""How far the direction of the targets can be trusted: do two halves of them agree?

The targets are split into two halves at random, and the mean of the unit gradients of one half is compared with that of
the other::

    r = cos( sum_{j in A} phi_j / |phi_j| ,  sum_{j in B} phi_j / |phi_j| )

averaged over :data:`SPLITS` splits. With a common direction of strength s^2 in unit vectors and independent noise it is
s^2 / (s^2 + (1 - s^2) / (q / 2)) in expectation: near 1 when the halves say the same, near 0 when the mean is noise, in
which case candidates are ranked by chance. (The split-half reliability of psychometrics; Spearman 1910, Brown 1910.)

Rows stream by once; what is held is two sums a split and task.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataflex.gradients.similarity import Blocks, normalized_rows
from dataflex.utils.reliability import LOW, decisive

SPLITS = 32
"""Splits that are averaged: their mean then moves by about a tenth of what a single split does."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Agreement of two halves of the targets.

    Attributes:
        targets: Mean over the groups of the halves' cosine, in [-1, 1]; None where no group has two targets.
        answers: The same for two halves of each prompt's answers; None for methods without answers, with a baseline,
            which ties the halves together, and where no prompt has two.
        groups: Per task (where the rule keeps tasks apart) its own cosine.
    """

    targets: float | None
    answers: float | None = None
    groups: dict[str, float] | None = None

    @property
    def low(self) -> bool:
        """Whether the direction is mostly noise, as far as is known."""
        value = decisive(self.targets, self.answers)
        return value is not None and value < LOW

    def facts(self) -> dict[str, Any]:
        """JSON-able facts for the selection's report."""
        return asdict(self)

    def describe(self) -> str:
        """The values in words."""
        parts = [
            f"{value:.2f} between two halves of {what}"
            for value, what in ((self.targets, "the targets"), (self.answers, "each prompt's answers"))
            if value is not None
        ]
        return "; ".join(parts) or "not known: it takes two targets with a gradient"


def target_reliability(
    blocks: Blocks, count: int, *, seed: int, groups: Sequence[str] = (), leave_out: Collection[int] = ()
) -> Reliability:
    """Agreement of random halves of the targets.

    Args:
        blocks: ``(first row, (rows, k))`` features of the q targets, in order.
        count: q.
        seed: Seed of the splits.
        groups: Task of each target where the rule has a direction a task; empty: all are one.
        leave_out: Rows that do not count: not finite, or zero, which have no direction.
    """
    names = list(groups) or [""] * count
    used = [row for row in range(count) if row not in leave_out]
    order = {name: place for place, name in enumerate(dict.fromkeys(names[row] for row in used))}
    halves = _halves([order[names[row]] for row in used], seed)  # (SPLITS, used)
    signs = torch.zeros(SPLITS, count, dtype=torch.float64)
    signs[:, used] = torch.from_numpy(halves)
    sums: list[Tensor] | None = None
    for start, features in blocks:
        unit = normalized_rows(features).nan_to_num_(0.0)  # rows that are left out may be NaN
        sums = sums or [torch.zeros(2, SPLITS, unit.shape[1], dtype=torch.float64) for _ in order]
        members: dict[int, list[int]] = {}
        for row in range(start, start + len(unit)):
            if row not in leave_out:
                members.setdefault(order[names[row]], []).append(row)
        for place, rows in members.items():
            own, part = signs[:, rows], unit[[row - start for row in rows]]
            sums[place][0] += (own > 0).double() @ part
            sums[place][1] += (own < 0).double() @ part
    found = {name: _mean_cosine(*(sums or [])[place]) for name, place in order.items()}
    known = {name: value for name, value in found.items() if value is not None}
    mean = sum(known.values()) / len(known) if known else None
    return Reliability(mean, groups=known if groups else None)


def paired_reliability(pairs: Iterable[Tensor]) -> float | None:
    """Cosine of the means of two lists of unit vectors: the halves of each prompt's answers.

    Args:
        pairs: ``(2, k)`` features of a prompt's halves, a prompt after the other; one with a half that is not finite or
            zero does not count.
    """
    total: Tensor | None = None
    for pair in pairs:
        unit = normalized_rows(pair)
        if unit.isfinite().all() and unit.any(dim=1).all():
            total = unit if total is None else total + unit
    return None if total is None else _mean_cosine(total[:1], total[1:])


def _halves(groups: Sequence[int], seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Per split +1 and -1 for the two halves of every group; one target of an odd group sits out: 0."""
    stream = np.random.default_rng([seed, 0x5E11])
    places = np.asarray(groups)
    signs = np.zeros((SPLITS, len(places)))
    for group in np.unique(places):
        members = np.flatnonzero(places == group)
        half = len(members) // 2
        for split in range(SPLITS):
            drawn = stream.permutation(members)
            signs[split, drawn[:half]], signs[split, drawn[half : 2 * half]] = 1, -1
    return signs


def _mean_cosine(first: Tensor, second: Tensor) -> float | None:
    """Mean cosine of the rows of ``(s, k)`` sums; None where one of them is zero."""
    norms = torch.linalg.vector_norm(first, dim=1) * torch.linalg.vector_norm(second, dim=1)
    usable = norms > 0
    if not usable.any():
        return None
    return float(((first * second).sum(dim=1)[usable] / norms[usable]).mean())
