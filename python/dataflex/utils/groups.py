"""Candidates and chosen rows by a group: a task, a source, a length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHORTEST = 32
"""Upper end of the first class of lengths, in tokens; each further one is twice as long."""


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group among all candidates and among the selected.

    Attributes:
        name: Name of the group.
        candidates: Rows of this group.
        share: Their share of all candidates.
        selected: Rows of this group that were selected, over the given selections.
        selected_share: Their share of all selected rows.
        mean_score: Mean of their finite scores, None where there are none.
        looked_at: Rows of this group with a score, unusable ones included, over the given selections.
    """

    name: str
    candidates: int
    share: float
    selected: int
    selected_share: float
    mean_score: float | None
    looked_at: int = 0

    @property
    def lift(self) -> float:
        """Share among the selected over share among the candidates."""
        return self.selected_share / self.share


def group_rows(
    names: Sequence[str], selections: Iterable[tuple[NDArray[np.bool_], NDArray[np.float64] | None]]
) -> list[GroupRow]:
    """Count candidates and selected rows by group over several selections, most selected first.

    Args:
        names: The group of each of the n candidates.
        selections: For each selection ``(n,)`` whether a candidate was chosen, and ``(n,)`` its score, where the
            method has scores, nan for a row that was not looked at; the mean is over finite ones.
    """
    groups = list(dict.fromkeys(names))
    numbers = {name: number for number, name in enumerate(groups)}
    place = np.array([numbers[name] for name in names], dtype=np.int64)
    candidates = np.bincount(place, minlength=len(groups))
    selected, scored, looked_at = (np.zeros(len(groups), dtype=np.int64) for _ in range(3))
    total = np.zeros(len(groups))
    for chosen, scores in selections:
        selected += np.bincount(place[chosen], minlength=len(groups))
        if scores is not None:
            finite = np.isfinite(scores)
            scored += np.bincount(place[finite], minlength=len(groups))
            total += np.bincount(place[finite], weights=scores[finite], minlength=len(groups))
            looked_at += np.bincount(place[~np.isnan(scores)], minlength=len(groups))
    rows = [
        GroupRow(
            name,
            int(candidates[number]),
            float(candidates[number] / len(place)),
            int(selected[number]),
            float(selected[number] / max(selected.sum(), 1)),
            float(total[number] / scored[number]) if scored[number] else None,
            int(looked_at[number]),
        )
        for number, name in enumerate(groups)
    ]
    return sorted(rows, key=lambda row: (-row.selected, row.name))


def length_names(tokens: Sequence[int]) -> list[str]:
    """The class of each length (``65-128``); their bounds are powers of two."""
    return [_length_name(count) for count in tokens]


def by_length(rows: Iterable[GroupRow]) -> list[GroupRow]:
    """Groups of :func:`length_names`, shortest first."""
    return sorted(rows, key=lambda row: int(row.name.split("-")[0]))


def _length_name(tokens: int) -> str:
    stop = max(SHORTEST, 1 << max(tokens - 1, 0).bit_length())
    return f"{0 if stop == SHORTEST else stop // 2 + 1}-{stop}"
