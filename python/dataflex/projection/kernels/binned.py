"""Sums of integers that lie on different grids: exact, hence in any order.

An integer S on a grid of exponent e stands for S 2^-e, e in [-126, 127]. With e + 126 = 8 j + 7 - s, 0 <= s < 8 ::

    S 2^-e = (S 2^s) 2^-(8 j - 119)

so that S 2^s is added to the int64 bin j, of which there are 32. Nothing is rounded before the bins are added up in
float64, finest first. A sum of n values of at most 2^23 takes 23 + 7 + log2(n) bits: bins hold 2^33 values, whatever
these are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dataflex.projection.kernels.fixed_point import MAX_EXPONENT, MIN_EXPONENT

WIDTH = 8
BINS = (MAX_EXPONENT - MIN_EXPONENT) // WIDTH + 1
COARSEST = MIN_EXPONENT + WIDTH - 1
"""Exponent of bin 0."""


class BinnedSums:
    """Exact sums ``(b, k)`` in the making; 256 b k bytes, of which the CPU touches those of bins that are used.

    Args:
        rows: b.
        dim: k.
        device: Where the sums lie.
    """

    def __init__(self, rows: int, dim: int, device: torch.device) -> None:
        shape = (BINS * rows, dim)
        # numpy leaves pages of zeros to the system until they are written; torch writes them (34 ms for 33 MB).
        on_cpu = device.type == "cpu"
        self._bins = (
            torch.from_numpy(np.zeros(shape, np.int64))
            if on_cpu
            else torch.zeros(shape, dtype=torch.int64, device=device)
        )
        self._rows = torch.arange(rows, device=device)

    def add(self, sums: Tensor, exponents: Tensor) -> None:
        """Add ``sums`` ``(b, k)`` int64, which are zero afterwards, of grids with ``exponents`` ``(b,)`` int32."""
        distance = (exponents - MIN_EXPONENT).long()
        sums <<= (WIDTH - 1 - distance % WIDTH)[:, None]
        index = torch.div(distance, WIDTH, rounding_mode="floor") * len(self._rows) + self._rows
        self._bins.index_put_((index,), sums, accumulate=True)
        sums.zero_()

    def total(self) -> Tensor:
        """``(b, k)`` float64."""
        bins = self._bins.view(BINS, len(self._rows), self._bins.shape[1])
        total = torch.zeros_like(bins[0], dtype=torch.float64)
        for number in reversed(range(BINS)):
            total += bins[number].double() * 2.0 ** -(WIDTH * number + COARSEST)
        return total
