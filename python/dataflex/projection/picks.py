"""Which coordinates of a matrix's gradient make features, where not all of them do.

Of a matrix ``(n, m)`` with more values than a kind of projection takes, k_o rows and k_i columns are drawn without
repeats; what is read are the k_o k_i values where they cross, times sqrt(n m / (k_o k_i)). Each value is among them
with probability (k_o / n) (k_i / m), so inner products are those of all values in expectation over seeds. For a linear
layer the values follow from k_o of its output gradients and k_i of its inputs, as in FactGraSS (arXiv 2505.18976): the
whole gradient is never formed. Unlike there, each value that was drawn is normalised with its own moments of Adam.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dataflex.projection.kernels.philox import domain, philox4x32


@dataclass(frozen=True, eq=False)
class Picks:
    """Coordinates of a matrix.

    Attributes:
        rows: ``(k_o,)`` int64, ascending.
        columns: ``(k_i,)`` int64, ascending.
        scale: Factor of the values there.
    """

    rows: Tensor
    columns: Tensor
    scale: float

    def to(self, device: torch.device) -> Picks:
        """The same with its indices on a device."""
        return Picks(self.rows.to(device), self.columns.to(device), self.scale)

    def of(self, values: Tensor) -> Tensor:
        """``(..., k_o k_i)`` of matrices ``(..., n, m)``, as they are."""
        return values.index_select(-2, self.rows).index_select(-1, self.columns).flatten(-2)


def draw_picks(shape: Sequence[int], values: int, seed: int, number: int) -> Picks | None:
    """Draw rows and columns of a parameter, as many of each as its sides are long to one another.

    Args:
        shape: The parameter's.
        values: About how many values to take; of a parameter with no more, or of other than two dimensions, all.
        seed: Of the draw, in [0, 2^64).
        number: The parameter's place among the trainable ones.

    Returns:
        The coordinates, or None for all.
    """
    if len(shape) != 2 or math.prod(shape) <= values:
        return None
    share = math.sqrt(values / math.prod(shape))
    taken = [min(size, max(1, round(size * share))) for size in shape]
    rows, columns = (
        _drawn(size, count, seed, number, side) for side, (size, count) in enumerate(zip(shape, taken, strict=True))
    )
    return Picks(rows, columns, math.sqrt(math.prod(shape) / math.prod(taken)))


def _drawn(size: int, count: int, seed: int, number: int, side: int) -> Tensor:
    """``count`` of ``size`` indices, ascending: those with the smallest random words."""
    counter = [torch.full((size,), word) for word in (0, number, side, domain("MASK"))]
    counter[0] = torch.arange(size)
    high, low, _, _ = philox4x32((counter[0], counter[1], counter[2], counter[3]), seed)
    words = (high << 31) ^ low  # 63 bits
    return words.argsort(stable=True)[:count].sort().values
