"""``gaussian``: dense projection with independent normal entries, P = N(0, 1) / sqrt(k), in floating point.

Entries come from uniform bits by the transform of Box and Muller (1958); ``csrc/gaussian.h`` states which. Features
agree with exact arithmetic to 1e-5 of their norm on every device and for every split, but not bit by bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dataflex.projection.kernels import block
from dataflex.projection.kernels.block import Block, unsigned_seed
from dataflex.projection.kernels.native import kernel
from dataflex.projection.kernels.philox import WORD, domain, philox4x32

COLUMNS = 4
"""Parameters that one call of the generator gives entries for."""
DOMAIN = domain("gaus")
ENTRIES_AT_ONCE = 1 << 22


def normal_entries(start: int, stop: int, *, dim: int, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Columns ``start`` to ``stop`` of sqrt(k) P: ``(k, n)`` float64."""
    first = start // COLUMNS
    blocks = torch.arange(first, (stop + COLUMNS - 1) // COLUMNS, device=device)  # (c,)
    outputs = torch.arange(dim, device=device)[:, None]
    counter = torch.broadcast_tensors(  # type: ignore[no-untyped-call]
        blocks & WORD, blocks >> 32, outputs, torch.full_like(blocks, DOMAIN)
    )  # (k, c)
    words = philox4x32((counter[0], counter[1], counter[2], counter[3]), seed)
    uniform = [(word.double() + 0.5) * 2.0**-32 for word in words]
    entries = []
    for x, y in (uniform[:2], uniform[2:]):
        radius, angle = torch.sqrt(-2 * torch.log(x)), 2 * math.pi * y
        entries += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(entries, dim=2).flatten(1)[:, start - first * COLUMNS : stop - first * COLUMNS]


def accumulate_reference(block: Block, sums: Tensor, not_finite: Tensor, *, seed: int) -> None:
    """Add the projection of a block to sums, in plain torch; arguments as :func:`gaussian_accumulate`."""
    dim = sums.shape[1]
    width = max(ENTRIES_AT_ONCE // dim, COLUMNS)
    for start, stop, values in block.pieces():
        finite = values.isfinite()
        not_finite |= ~finite.all(dim=1)
        used = values.masked_fill(~finite, 0).double()  # (b, n)
        for begin in range(start, stop, width):
            end = min(begin + width, stop)
            entries = normal_entries(block.offset + begin, block.offset + end, dim=dim, seed=seed, device=sums.device)
            sums += used[:, begin - start : end - start] @ entries.T


@torch.library.custom_op(
    "dataflex::gaussian_accumulate",
    mutates_args=("sums", "not_finite"),
    schema=f"({block.SCHEMA}, Tensor(a!) sums, Tensor(b!) not_finite, int seed) -> ()",
)
def gaussian_accumulate(
    grads: Tensor,
    offset: int,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor | None,
    variant: str,
    constants: Sequence[float],
    sums: Tensor,
    not_finite: Tensor,
    seed: int,
) -> None:
    """Add the projection of a block of parameters to sums, natively where a kernel is there.

    Args:
        grads: As all arguments up to ``constants``: see :func:`dataflex.projection.kernels.sjlt.sjlt_accumulate`.
        offset: Parameter index of the first column.
        exp_avg: ``(n,)`` float32 or None.
        exp_avg_sq: ``(n,)`` float32 or None.
        variant: ``none``, ``adamw``, ``less`` or ``second_moment``.
        constants: Numbers of the normalisation.
        sums: ``(b, k)`` float64, added to.
        not_finite: ``(b,)`` uint8, set to 1 where a value is not finite; such a value counts as 0.
        seed: Seed of P as a signed 64-bit number.
    """
    parameters = Block(grads, offset, exp_avg, exp_avg_sq, variant, constants)
    native = kernel("gaussian", grads.device)
    if native is None:
        accumulate_reference(parameters, sums, not_finite, seed=unsigned_seed(seed))
        return
    native(parameters, seed=unsigned_seed(seed), sums=sums, not_finite=not_finite)


@gaussian_accumulate.register_fake
def _(*args: object) -> None:
    """Nothing is returned: the sums are changed in place."""
