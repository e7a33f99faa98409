"""What a selection is going to compute, for dry runs that time a little of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataflex.gradients.store import FeatureStore


@dataclass(frozen=True, slots=True)
class PlannedPart:
    """Something that a selection computes for every row of a dataset, batch by batch.

    Attributes:
        name: What is computed, in the words of the selection's report.
        lengths: Tokens of each of the n rows.
        prepare: Whatever comes once, before the first batch; it also warms the model up.
        batches: The numbers of the rows that are computed together, after ``prepare``.
        compute: Computes b rows by their numbers.
        open_store: Makes the store of this part in an empty folder; None: nothing is stored by shards.
    """

    name: str
    lengths: Sequence[int]
    prepare: Callable[[], object]
    batches: Callable[[], list[list[int]]]
    compute: Callable[[list[int]], object]
    open_store: Callable[[Path], FeatureStore] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The work of one selection.

    Attributes:
        parts: What can be timed on a few batches.
        counts: What is only counted (answers to sample, rewards to ask for).
        notes: What else is worth saying, a line each.
    """

    parts: Sequence[PlannedPart] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
