"""Cosine influence of candidates on targets, and the choice of the best.

With features phi, the score of candidate i under mean aggregation is

    s_i = (1 / q) sum_j cos(phi_i, phi_j) = <phi_i / |phi_i|, (1 / q) sum_j phi_j / |phi_j|>,

one inner product with a mean direction: nothing of size n x q is formed. The other rules are a maximum over several
directions: ``max`` has one direction a target, ``task_max`` the mean direction of each task (LESS, arXiv 2402.04333).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataflex.errors import SelectionError

Aggregate = Literal["mean", "max", "task_max"]


def normalized_rows(features: Tensor) -> Tensor:
    """Rows of unit length in float64; zero rows stay zero, rows with a non-finite entry become NaN.

    Args:
        features: ``(n, k)`` floating point.
    """
    rows = features.to(torch.float64)
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = torch.where(norms > 0, rows / norms, torch.zeros_like(rows))
    return torch.where(torch.isfinite(norms), unit, torch.full_like(rows, float("nan")))


def target_directions(
    features: Tensor, aggregate: Aggregate = "mean", groups: Sequence[str | None] | None = None
) -> Tensor:
    """Directions whose largest inner product with a unit candidate is its score.

    Args:
        features: ``(q, k)`` features of the targets that count; zero rows score 0.
        aggregate: Rule over the targets.
        groups: Task of each target, for ``task_max``.

    Returns:
        ``(1, k)``, ``(q, k)`` or ``(tasks, k)`` float64.

    Raises:
        SelectionError: There are no targets, one is not finite, or a task is missing.
    """
    if len(features) == 0:
        raise SelectionError("no evaluation sample is left to compare with")
    unit = normalized_rows(features)
    if not torch.isfinite(unit).all():
        raise SelectionError("evaluation features hold values that are not finite; leave those rows out first")
    if aggregate == "max":
        return unit
    if aggregate == "mean":
        return unit.mean(dim=0, keepdim=True)
    if groups is None or any(group is None for group in groups):
        raise SelectionError(
            "aggregate 'task_max' needs the task of every evaluation sample",
            hint="name the column with task_column, or use aggregate: mean",
        )
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(str(group), []).append(row)
    return torch.stack([unit[rows].mean(dim=0) for rows in members.values()])


def cosine_scores(blocks: Iterable[tuple[int, Tensor]], directions: Tensor, num_rows: int) -> NDArray[np.float64]:
    """Score every candidate while its features stream by.

    Args:
        blocks: (first row, ``(rows, k)`` features) in any order.
        directions: ``(d, k)`` float64 from :func:`target_directions`.
        num_rows: n.

    Returns:
        ``(n,)`` float64; -inf for rows that are zero, not finite or absent.
    """
    scores = np.full(num_rows, -np.inf)
    for start, features in blocks:
        unit = normalized_rows(features)
        usable = torch.isfinite(unit).all(dim=1) & (unit != 0).any(dim=1)
        best = (unit @ directions.T).amax(dim=1)
        scores[start : start + len(features)] = torch.where(usable, best, float("-inf")).numpy()
    return scores


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
