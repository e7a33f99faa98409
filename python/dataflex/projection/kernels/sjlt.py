"""``sjlt``: block-permutation sparse Johnson-Lindenstrauss projection.

P has s nonzeros of +-1/sqrt(s) in each column, one in each of s equal blocks of rows. 16 consecutive parameters (a
group) stay together: in each block the group goes to one random aligned segment of 16 outputs, with a random
permutation of its lanes and a random sign each. Everything is drawn with Philox4x32-10 from (seed, parameter index,
repetition) alone, so any split of the parameters gives the same P, and E[P^T P] = I. A sparse map of this form is as
accurate as a dense one from s = 8 on; with s = 1 to 4, few large entries cost accuracy. (Sparse JL: Kane and Nelson,
arXiv 1012.1577.)

The grid (:mod:`dataflex.projection.kernels.fixed_point`) ends at 2^23, the largest limit up to which float32 holds
every integer and every half below it; 255 such values still add up in 32 bits. Features are within 1e-5 of exact
arithmetic; 16 bits would not be. ``csrc/sjlt.h`` states the same map word by word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dataflex.projection.kernels import block, fixed_point
from dataflex.projection.kernels.block import Block, unsigned_seed
from dataflex.projection.kernels.fixed_point import grid_values
from dataflex.projection.kernels.native import kernel
from dataflex.projection.kernels.philox import WORD, domain, philox4x32

LANES = 16
LIMIT = 2**23
DOMAIN = domain("sjlt")


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
        counter = (groups & WORD, groups >> 32, torch.full_like(groups, pair), torch.full_like(groups, DOMAIN))
        words = philox4x32(counter, seed)
        for j in range(2 * pair, min(2 * pair + 2, sparsity)):
            place, shape = words[j % 2 * 2], words[j % 2 * 2 + 1]
            segment = place * (outputs // LANES) >> 32
            permutation = ((shape >> 20) * 15 >> 12) * LANES + (shape >> 16 & 15)
            output = (j * outputs + segment * LANES)[:, None] + positions[permutation]  # (n / 16, 16)
            negative = (shape[:, None] >> lanes & 1).bool()
            yield output.flatten()[columns], negative.flatten()[columns]


def accumulate_reference(
    block: Block,
    exponents: Tensor,
    sums: Tensor,
    not_finite: Tensor,
    saturated: Tensor,
    *,
    seed: int,
    sparsity: int,
) -> None:
    """Add the projection of a block to integer sums, in plain torch; arguments as :func:`sjlt_accumulate`."""
    for start, stop, grid in grid_values(block, exponents, LIMIT, not_finite, saturated):
        columns = placements(
            block.offset + start,
            block.offset + stop,
            dim=sums.shape[1],
            sparsity=sparsity,
            seed=seed,
            device=sums.device,
        )
        for output, negative in columns:
            sums.scatter_add_(1, output.expand_as(grid), torch.where(negative, -grid, grid))


@torch.library.custom_op(
    "dataflex::sjlt_accumulate",
    mutates_args=("sums", "not_finite", "saturated"),
    schema=f"({block.SCHEMA}, {fixed_point.SCHEMA}, int seed, int sparsity) -> ()",
)
def sjlt_accumulate(
    grads: Tensor,
    offset: int,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor | None,
    variant: str,
    constants: Sequence[float],
    exponents: Tensor,
    sums: Tensor,
    not_finite: Tensor,
    saturated: Tensor,
    seed: int,
    sparsity: int,
) -> None:
    """Add the projection of a block of parameters to integer sums, natively where a kernel is there.

    Args:
        grads: ``(b, n)`` float32, bfloat16 or float16; rows may be strided, values of a row are contiguous.
        offset: Parameter index of the first column.
        exp_avg: ``(n,)`` float32 first moments, or None for raw gradients.
        exp_avg_sq: ``(n,)`` float32 second moments, or None for raw gradients.
        variant: ``none``, ``adamw``, ``less`` or ``second_moment``.
        constants: :meth:`dataflex.projection.adam.AdamMoments.constants`; zeros for raw gradients.
        exponents: ``(b,)`` int32 grid exponents.
        sums: ``(b, k)`` int64, added to.
        not_finite: ``(b,)`` uint8, set to 1 where a value is not finite.
        saturated: ``(b,)`` int64, added to: values beyond the grid.
        seed: Seed of P as a signed 64-bit number.
        sparsity: s.
    """
    parameters = Block(grads, offset, exp_avg, exp_avg_sq, variant, constants)
    native = kernel("sjlt", grads.device)
    if native is None:
        results = (exponents, sums, not_finite, saturated)
        accumulate_reference(parameters, *results, seed=unsigned_seed(seed), sparsity=sparsity)
        return
    native(
        parameters,
        exponents=exponents,
        seed=unsigned_seed(seed),
        sparsity=sparsity,
        sums=sums,
        not_finite=not_finite,
        saturated=saturated,
    )


@sjlt_accumulate.register_fake
def _(*args: object) -> None:
    """Nothing is returned: the sums are changed in place."""
