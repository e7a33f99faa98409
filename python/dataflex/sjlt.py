"""Block-permutation sparse Johnson-Lindenstrauss projection: its specification, in plain torch.

The map. P has s nonzeros of +-1/sqrt(s) in each column, one in each of s equal blocks of rows. 16 consecutive
parameters (a group) stay together: in each block the group goes to one random aligned segment of 16 outputs, with a
random permutation of its lanes and a random sign each. Everything is drawn with Philox4x32-10 from (seed, parameter
index, repetition) alone, so any split of the parameters gives the same P, and E[P^T P] = I. A sparse map of this form
is as accurate as a dense one from s = 8 on; with s = 1 to 4, few large entries cost accuracy. (Sparse JL: Kane and
Nelson, arXiv 1012.1577.)

Exact sums. The values u go on an integer grid, and all sums are integer sums: features have the same bits whatever
the batch size, block split, number of threads, instruction set or device. Per row, with exponent e::

    q = round_half_even(clamp(u 2^e, -2^23, 2^23))     T = sum of +-q (int64)     feature = float32(T 2^-e / sqrt(s))

Adam-normalised values are bounded, so one e serves all rows; raw gradients take e from the row's largest entry.
The grid moves an entry by at most 2^-23 of its row's largest entry (raw), or 2^-21 (Adam, betas 0.9 and 0.999, where
entries are of order 1), which keeps features within 1e-5 of exact arithmetic; 16 bits would not. 2^23 is the largest
limit up to which float32 holds every integer and every half below it, and 255 such values still add up in 32 bits.

``csrc/sjlt.h`` states the same map word by word; :func:`accumulate` is the reference that every kernel is compared
with, and takes the place of a missing one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from dataflex.adam import AdamMoments, adam_bound, adam_normalize

LANES = 16
GRID_BITS = 23
GRID_LIMIT = float(2**GRID_BITS)
MIN_EXPONENT, MAX_EXPONENT = GRID_BITS - 128, 127
DOMAIN = int.from_bytes(b"sjlt", "big")
VALUES_AT_ONCE = 1 << 18

_WORD = 0xFFFFFFFF


def _multiply_gf16(a: int, b: int) -> int:
    """Product in GF(16) = GF(2)[x] / (x^4 + x + 1)."""
    product = 0
    for bit in range(4):
        product ^= (a << bit) * (b >> bit & 1)
    for bit in (6, 5, 4):
        product ^= (0b10011 << bit - 4) * (product >> bit & 1)
    return product


POSITIONS = [[_multiply_gf16(1 + row // 16, lane) ^ row % 16 for lane in range(LANES)] for row in range(15 * 16)]
"""``POSITIONS[16 (multiplier - 1) + shift][lane]``: the affine maps of GF(16), which permute the lanes of a group.

They carry every pair of lanes to every pair of positions equally often, as all permutations would.
"""


def adam_exponent(betas: tuple[float, float]) -> int:
    """The grid exponent e of Adam-normalised rows: the largest with bound * 2^e <= 2^23, 0.1 % kept in hand."""
    return GRID_BITS - math.frexp(adam_bound(betas) * (1 + 2**-10))[1]


def row_exponents(grads: Tensor) -> Tensor:
    """The grid exponent e of each raw row: the largest with max|g| * 2^e <= 2^23, but at most 127.

    Rows of several blocks take the minimum of the blocks' exponents.

    Args:
        grads: ``(b, p)`` float32, bfloat16 or float16.

    Returns:
        ``(b,)`` int32 on the device of ``grads``; 127 for a row of zeros, -105 for one that is not finite.
    """
    if grads.numel() == 0:
        return torch.full((grads.shape[0],), MAX_EXPONENT, dtype=torch.int32, device=grads.device)
    low, high = torch.aminmax(grads.detach(), dim=1)
    largest = torch.maximum(-low, high).double()  # (b,) NaN if the row has one
    exponents = (GRID_BITS - torch.frexp(largest).exponent).clamp(max=MAX_EXPONENT)
    exponents = exponents.masked_fill(largest == 0, MAX_EXPONENT)
    return exponents.masked_fill(~largest.isfinite(), MIN_EXPONENT).to(torch.int32)


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011) on int64 tensors that hold 32-bit words.

    Args:
        counter: Four tensors of one shape, least significant word first.
        seed: The 64-bit key.

    Returns:
        Four words of the same shape, each in [0, 2^32).
    """
    x0, x1, x2, x3 = counter
    key0, key1 = seed & _WORD, seed >> 32
    for _ in range(10):
        # A product may wrap around int64; its 64 bits are right all the same.
        product0, product1 = x0 * 0xD2511F53, x2 * 0xCD9E8D57
        high0, high1 = product0 >> 32 & _WORD, product1 >> 32 & _WORD
        x0, x1, x2, x3 = high1 ^ x1 ^ key0, product1 & _WORD, high0 ^ x3 ^ key1, product0 & _WORD
        key0, key1 = key0 + 0x9E3779B9 & _WORD, key1 + 0xBB67AE85 & _WORD
    return x0, x1, x2, x3


def placements(
    start: int, stop: int, *, dim: int, sparsity: int, seed: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """The nonzeros of columns ``start`` to ``stop`` of P, one repetition at a time.

    Yields:
        For each of the s repetitions ``(output, negative)``: ``(n,)`` int64 row of P, and ``(n,)`` bool sign.
    """
    first = start // LANES
    groups = torch.arange(first, (stop + LANES - 1) // LANES, device=device)  # (n / 16,)
    columns = slice(start - first * LANES, stop - first * LANES)
    lanes = torch.arange(LANES, device=device)
    positions = torch.tensor(POSITIONS, device=device)  # (240, 16)
    outputs = dim // sparsity
    for pair in range((sparsity + 1) // 2):
        counter = (groups & _WORD, groups >> 32, torch.full_like(groups, pair), torch.full_like(groups, DOMAIN))
        words = philox4x32(counter, seed)
        for j in range(2 * pair, min(2 * pair + 2, sparsity)):
            place, shape = words[j % 2 * 2], words[j % 2 * 2 + 1]
            segment = place * (outputs // LANES) >> 32
            permutation = ((shape >> 20) * 15 >> 12) * LANES + (shape >> 16 & 15)
            output = (j * outputs + segment * LANES)[:, None] + positions[permutation]  # (n / 16, 16)
            negative = (shape[:, None] >> lanes & 1).bool()
            yield output.flatten()[columns], negative.flatten()[columns]


def accumulate(
    block: Tensor,
    offset: int,
    adam: AdamMoments | None,
    exponents: Tensor,
    *,
    seed: int,
    sparsity: int,
    totals: Tensor,
    not_finite: Tensor,
    saturated: Tensor,
) -> None:
    """Add the projection of a block of parameters to integer totals.

    Args:
        block: ``(b, n)`` gradients of parameters ``offset`` to ``offset + n``.
        offset: Parameter index of the first column.
        adam: Moments of those n parameters, or None for raw gradients.
        exponents: ``(b,)`` int32 grid exponents.
        seed: Seed of P.
        sparsity: s.
        totals: ``(b, k)`` int64, added to.
        not_finite: ``(b,)`` uint8, set to 1 where a value is not finite.
        saturated: ``(b,)`` int64, added to: values beyond the grid.
    """
    scales = torch.tensor([math.ldexp(1.0, e) for e in exponents.tolist()], dtype=torch.float32, device=block.device)
    width = max(VALUES_AT_ONCE // max(block.shape[0], 1), LANES)
    for start in range(0, block.shape[1], width):
        stop = min(start + width, block.shape[1])
        part = block[:, start:stop]
        values = part.detach().float() if adam is None else adam_normalize(part, adam.slice(start, stop))  # (b, n)
        finite = values.isfinite()
        scaled = values * scales[:, None]
        clamped = scaled.clamp(-GRID_LIMIT, GRID_LIMIT)
        not_finite |= ~finite.all(dim=1)
        saturated += (finite & (clamped != scaled)).sum(dim=1)
        grid = clamped.masked_fill(~finite, 0).round().long()  # (b, n)
        columns = placements(
            offset + start, offset + stop, dim=totals.shape[1], sparsity=sparsity, seed=seed, device=block.device
        )
        for output, negative in columns:
            totals.scatter_add_(1, output.expand_as(grid), torch.where(negative, -grid, grid))


def features(totals: Tensor, not_finite: Tensor, exponents: Tensor, sparsity: int) -> Tensor:
    """Totals ``(b, k)`` int64 to features ``(b, k)`` float32; rows that are not finite become NaN.

    The factor 2^-e / sqrt(s) and the product are float64, rounded to float32 once.
    """
    factors = [math.ldexp(1 / math.sqrt(sparsity), -e) for e in exponents.tolist()]
    scale = torch.tensor(factors, dtype=torch.float64, device=totals.device)
    return (totals.double() * scale[:, None]).float().masked_fill_(not_finite.bool()[:, None], math.nan)
