"""Cosines of rows with directions, with the same bits for the same row wherever it stands.

A matrix product in floating point adds up in an order that depends on the shape of the matrices, on the processor and
on the number of threads: equal candidates in blocks of different height would get scores that differ in the last bit,
and ties would not go to the smaller index. Sums of integers below 2^53 are exact in float64, whatever their order. So
each row is scaled by a power of two to a largest entry in [1/2, 1) and split into two integers an entry ::

    x = (high + low 2^-s) 2^-s,      |high| <= 2^s,  |low| <= 2^(s-1),      2 s + log2 k <= 53,

and inner products are sums of products of these parts (the error-free transformation of Ozaki et al., Numerical
Algorithms 2012, with two slices). An entry moves by at most 2^-(2s+1) of the row's largest: 5e-13 for k = 4096.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class SplitRows:
    """n rows of k values as integers.

    Attributes:
        parts: ``(2, n, k)`` float64, high and low; zeros for a row that is not finite.
        bits: s.
        exponents: ``(n,)`` float64: a row is (high + low 2^-s) 2^-s times 2 to the power of its exponent.
        finite: ``(n,)`` bool.
    """

    parts: Tensor
    bits: int
    exponents: Tensor
    finite: Tensor

    @property
    def nonzero(self) -> Tensor:
        """``(n,)`` bool: rows that have a direction."""
        return self.parts[0].any(dim=1)


def split_rows(rows: Tensor) -> SplitRows:
    """Split rows into integers.

    Args:
        rows: ``(n, k)`` floating point.
    """
    bits = (53 - math.ceil(math.log2(max(rows.shape[1], 1)))) // 2
    largest = torch.maximum(rows.amax(dim=1), -rows.amin(dim=1)).double()  # (n,) NaN if the row has one
    finite = largest.isfinite()
    exponents = torch.frexp(largest.masked_fill(~finite, 0)).exponent.double()
    if not finite.all():
        rows = rows.masked_fill(~finite[:, None], 0)
    parts = torch.empty((2, *rows.shape), dtype=torch.float64)
    torch.mul(rows, torch.exp2(bits - exponents)[:, None], out=parts[1])  # exact: a power of two
    torch.round(parts[1], out=parts[0])
    parts[1].sub_(parts[0]).mul_(2.0**bits).round_()
    return SplitRows(parts, bits, exponents, finite)


def cosines(rows: SplitRows, directions: SplitRows) -> Tensor:
    """``(n, d)`` float64 inner products of the rows, scaled to length one, with d directions; 0 for rows of zeros."""
    unit = 2.0**-rows.bits
    products = rows.parts.flatten(0, 1) @ directions.parts.flatten(0, 1).T
    (hh, hl), (lh, ll) = products.view(2, rows.parts.shape[1], 2, -1).permute(0, 2, 1, 3)  # (n, d) each
    dots = hh + (hl + lh) * unit + ll * unit**2
    high, low = rows.parts
    squares = (
        torch.linalg.vecdot(high, high)
        + 2 * unit * torch.linalg.vecdot(high, low)
        + unit**2 * torch.linalg.vecdot(low, low)
    )
    norms = torch.from_numpy(np.sqrt(squares.numpy()))  # numpy rounds correctly; torch's vector library need not
    found: Tensor = dots / norms.masked_fill(norms == 0, 1.0)[:, None] * torch.exp2(directions.exponents) * unit
    return found
