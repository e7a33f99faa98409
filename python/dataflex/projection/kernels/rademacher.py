"""``rademacher``: dense projection with random signs, P = +-1 / sqrt(k).

The grid (:mod:`dataflex.projection.kernels.fixed_point`) ends at 2^15 - 1, so that a value fits two bytes, which is
what integer matrix units multiply. A step of it is 2^-12 for Adam-normalised values (betas 0.9, 0.999), and 2^-14 to
2^-15 of a raw row's largest entry; the relative error of features is about 0.3 steps over the root mean square of the
values: below 5e-4 unless a raw row's largest entry is more than 28 times its root mean square.

``csrc/rademacher.h`` states where a sign comes from, and why its bits lie as they do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dataflex.projection.kernels import block, fixed_point
from dataflex.projection.kernels.block import Block, unsigned_seed
from dataflex.projection.kernels.fixed_point import grid_values
from dataflex.projection.kernels.native import kernel
from dataflex.projection.kernels.philox import WORD, domain, philox4x32

LIMIT = 2**15 - 1
COLUMNS = 128
"""Parameters that one call of the generator gives signs for."""
DOMAIN = domain("rade")
ENTRIES_AT_ONCE = 1 << 22


def negative_signs(start: int, stop: int, *, dim: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Which entries of columns ``start`` to ``stop`` of P are negative: ``(k, n)`` bool."""
    first = start // COLUMNS
    blocks = torch.arange(first, (stop + COLUMNS - 1) // COLUMNS, device=device)  # (c,)
    outputs = torch.arange(dim, device=device)
    column = torch.arange(COLUMNS, device=device)
    lanes = (outputs // 32 * 32 + outputs % 8 * 4)[:, None] + torch.arange(4, device=device)  # (k, 4)
    counter = torch.broadcast_tensors(  # type: ignore[no-untyped-call]
        blocks & WORD, blocks >> 32, lanes[:, :, None], torch.full_like(blocks, DOMAIN)
    )  # (k, 4, c)
    words = torch.stack(philox4x32((counter[0], counter[1], counter[2], counter[3]), seed))  # (4, k, 4, c)
    of_output = words[outputs // 8 % 4, outputs]  # (k, 4, c)
    bits = of_output[:, column // 4 % 4].transpose(1, 2) >> (column % 4 * 8 + column // 16) & 1  # (k, c, 128)
    return bits.flatten(1)[:, start - first * COLUMNS : stop - first * COLUMNS].bool()


def accumulate_reference(
    block: Block, exponents: Tensor, sums: Tensor, not_finite: Tensor, saturated: Tensor, *, seed: int
) -> None:
    """Add the projection of a block to integer sums, in plain torch; arguments as :func:`rademacher_accumulate`."""
    dim = sums.shape[1]
    width = max(ENTRIES_AT_ONCE // dim, COLUMNS)
    for start, stop, grid in grid_values(block, exponents, LIMIT, not_finite, saturated):
        for begin in range(start, stop, width):
            end = min(begin + width, stop)
            negative = negative_signs(block.offset + begin, block.offset + end, dim=dim, seed=seed, device=sums.device)
            # float64 holds these sums of integers exactly.
            part = grid[:, begin - start : end - start].double() @ (1 - 2 * negative.double()).T
            sums += part.long()


@torch.library.custom_op(
    "dataflex::rademacher_accumulate",
    mutates_args=("sums", "not_finite", "saturated"),
    schema=f"({block.SCHEMA}, {fixed_point.SCHEMA}, int seed) -> ()",
)
def rademacher_accumulate(
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
) -> None:
    """Add the projection of a block of parameters to integer sums, natively where a kernel is there.

    Arguments as :func:`dataflex.projection.kernels.sjlt.sjlt_accumulate`.
    """
    parameters = Block(grads, offset, exp_avg, exp_avg_sq, variant, constants)
    native = kernel("rademacher", grads.device)
    if native is None:
        accumulate_reference(parameters, exponents, sums, not_finite, saturated, seed=unsigned_seed(seed))
        return
    native(
        parameters,
        exponents=exponents,
        seed=unsigned_seed(seed),
        sums=sums,
        not_finite=not_finite,
        saturated=saturated,
    )


@rademacher_accumulate.register_fake
def _(*args: object) -> None:
    """Nothing is returned: the sums are changed in place."""
