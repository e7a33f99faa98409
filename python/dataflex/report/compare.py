"""How much two selections of the same candidates have in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def overlap(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float | None:
    """The share of the rows chosen by ``other`` that ``one`` chose too; None where they cannot be compared.

    Args:
        one: ``(n,)`` bool, whether a candidate was chosen.
        other: The same of another selection.
    """
    count = int(other.sum())
    return float((one & other).sum() / count) if count and len(one) == len(other) else None


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Spearman's correlation of the scores of rows that have a finite one in both; ties share their mean rank.

    Args:
        one: ``(n,)`` float64.
        other: The same of another selection.

    Returns:
        Between -1 and 1; None where fewer than two rows can be compared, or all have the same score.
    """
    if len(one) != len(other):
        return None
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 2:
        return None
    first, second = ranks(one[both]), ranks(other[both])
    first, second = first - first.mean(), second - second.mean()
    size = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / size if size else None


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank of each value from 0, ascending; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[place]
