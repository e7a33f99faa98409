"""The integer grid on which projections add up exactly.

All sums are integer sums, so features have the same bits whatever the batch size, order of blocks, number of threads,
instruction set or device. With a row's exponent e and the kind's limit (2^23 for ``sjlt``, 2^15 - 1 for
``rademacher``)::

    q = round_half_even(clamp(u 2^e, -limit, limit))       T = sum of +-q (int64)       feature = float32(T scale 2^-e)

Which e:

- ``adamw`` and ``less`` are of order 1 and bounded: one e serves all rows and all blocks (:func:`adam_exponent`).
- Raw gradients may have any size, and so may those over the root of a second moment: a row that the model knows by
  heart is small, and the bound is far off. Each row of each block has its own e, from the largest value there
  (:func:`raw_exponents`, :func:`second_moment_exponents`), and T 2^-e are added over the blocks as exact integers
  (:mod:`dataflex.projection.kernels.binned`), in whatever order they come.

The grid moves an entry by at most half a step 2^-e, which is less than 1 / limit of the block's largest entry (raw;
twice that with second moments) or of twice the bound (Adam).

The error of features relative to their norm is about 0.29 2^-e over the root mean square of the block's values, and
stays within what a kind promises where

- the largest entry of a block with its own grid is at least limit 2^-127, which is where grids end: 5e-32 for ``sjlt``,
  2e-34 for ``rademacher``. (Features of rows much smaller than that are float32 denormals anyway.)
- it is at most 145 (``sjlt``) or 28 (``rademacher``) times the root mean square of its row there.
- the bound of ``adamw`` and ``less`` is at most 7.5: for b2 <= 0.999 (b1 = 0.9), and for any b2 in the first 1,000
  steps. Beyond, the error grows with the bound: for b2 = 0.99999999 to 30 times after a million steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dataflex.projection.adam import AdamMoments, adam_bound, square_root
from dataflex.projection.kernels.block import Block

MIN_EXPONENT, MAX_EXPONENT = -126, 127
SCHEMA = "Tensor exponents, Tensor(a!) sums, Tensor(b!) not_finite, Tensor(c!) saturated"
"""The arguments of an operator that adds to integer sums."""


BOUND_COLUMNS = 1 << 18
"""Values of a block (b x n) that the second moments' bound looks at at once: they stay in the cache."""
COARSEST_BOUND = 7.5
"""The bound at a number of steps replaces the limit no further down than here: all grids of betas up to 0.9, 0.999 are
then those of the limit, whatever the step."""


def adam_exponent(
    betas: tuple[float, float], limit: int, largest_rate: float = 1.0, gradients: int | None = None
) -> int:
    """The exponent of Adam-normalised rows: the largest with bound * largest rate * 2^e <= limit, 0.1 % in hand.

    Args:
        betas: :attr:`dataflex.projection.adam.AdamMoments.effective_betas`.
        limit: Largest integer of the grid.
        largest_rate: :attr:`dataflex.projection.adam.AdamMoments.largest_rate`.
        gradients: As for :func:`dataflex.projection.adam.adam_bound`.
    """
    bound = min(adam_bound(betas), max(COARSEST_BOUND, adam_bound(betas, gradients)))
    return math.floor(math.log2(limit / (bound * largest_rate * (1 + 2**-10))))


def shares_grid(adam: AdamMoments | None) -> bool:
    """Whether all rows and blocks have one grid, so that blocks may be cut anywhere without a change of bits."""
    return adam is not None and adam.variant != "second_moment"


def raw_exponents(grads: Tensor, limit: int) -> Tensor:
    """The exponent of each raw row: the largest with max|g| * 2^e <= limit, but at most 127.

    Args:
        grads: ``(b, n)`` float32, bfloat16 or float16.
        limit: Largest integer of the grid, at most 2^23.

    Returns:
        ``(b,)`` int32 on the device of ``grads``; 127 for a row of zeros, -126 for one that is not finite.
    """
    return _exponents(_largest(grads), limit)


def second_moment_exponents(grads: Tensor, adam: AdamMoments, limit: int) -> Tensor:
    """The exponent of each row over the root of second moments, from a bound of max|u|.

    Both terms of v' are positive, so that each alone bounds u = c1 g / (sqrt((b2 v + c2 g^2) r2) + eps) ::

        |u| <= min(|g| w, c1 / sqrt(c2 r2))           w = c1 / (sqrt(b2 v r2) + eps)

    at most sqrt(2) times too high, 2 times where eps counts: a bit of the grid. w is the same for all rows, so that a
    row costs a product and a maximum in place of another root and division.

    Args:
        grads: ``(b, n)`` float32, bfloat16 or float16.
        adam: Moments of those n parameters, which share a learning rate.
        limit: Largest integer of the grid, at most 2^23.

    Returns:
        As :func:`raw_exponents`.
    """
    _, c1, b2, c2, _, r2, eps = adam.constants()
    # The root is correctly rounded: an exponent must not depend on the instruction set.
    weights = (c1 / (square_root(b2 * adam.exp_avg_sq * r2) + eps)).clamp(max=torch.finfo(torch.float32).max)
    width = max(BOUND_COLUMNS // max(grads.shape[0], 1), 1)
    parts = [
        _largest(grads[:, start : start + width] * weights[start : start + width])
        for start in range(0, grads.shape[1], width)
    ]
    largest = torch.stack(parts).amax(dim=0) if parts else _largest(grads)
    return _exponents(largest.clamp(max=c1 / math.sqrt(c2 * r2)) * (1 + 2**-10), limit)


def _largest(grads: Tensor) -> Tensor:
    """``(b,)`` float64 largest |g| of each row; NaN if the row has one."""
    if grads.shape[1] == 0:
        return torch.zeros(grads.shape[0], dtype=torch.float64, device=grads.device)
    values = grads.detach()
    # Twice as fast as torch.aminmax, which is not vectorised over the last dimension.
    return torch.maximum(values.amax(dim=1), -values.amin(dim=1)).double()


def _exponents(largest: Tensor, limit: int) -> Tensor:
    mantissa, exponent = torch.frexp(largest)
    limit_mantissa, limit_exponent = math.frexp(limit)
    exponents = limit_exponent - exponent - (mantissa > limit_mantissa).int()
    exponents = exponents.clamp(max=MAX_EXPONENT).masked_fill(largest == 0, MAX_EXPONENT)
    return exponents.masked_fill(~largest.isfinite(), MIN_EXPONENT).to(torch.int32)


def grid_values(
    block: Block, exponents: Tensor, limit: int, not_finite: Tensor, saturated: Tensor
) -> Iterator[tuple[int, int, Tensor]]:
    """The integers of a block, a few columns at a time.

    Args:
        block: Gradients of b rows.
        exponents: ``(b,)`` int32.
        limit: Largest integer of the grid.
        not_finite: ``(b,)`` uint8, set to 1 where a value is not finite; such a value is 0 on the grid.
        saturated: ``(b,)`` int64, added to: values beyond the grid.

    Yields:
        ``(start, stop, q)`` with ``(b, stop - start)`` int64 q.
    """
    scales = torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents).float()[:, None]
    for start, stop, values in block.pieces():
        finite = values.isfinite()
        scaled = values * scales
        clamped = scaled.clamp(-limit, limit)
        not_finite |= ~finite.all(dim=1)
        saturated += (finite & (clamped != scaled)).sum(dim=1)
        yield start, stop, clamped.masked_fill(~finite, 0).round().long()


def features(sums: Tensor, not_finite: Tensor, exponent: int, scale: float) -> Tensor:
    """Sums ``(b, k)`` on one grid to features ``(b, k)`` float32; rows that are not finite become NaN.

    The factor ``scale`` 2^-e and the product are float64, rounded to float32 once.
    """
    values = (sums.double() * math.ldexp(scale, -exponent)).float()
    return values.masked_fill_(not_finite.bool()[:, None], math.nan)
