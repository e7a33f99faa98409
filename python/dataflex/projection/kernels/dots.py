"""``dots``: exact inner products of normalised gradients with a few directions, and their squares, in one pass.

For a row u and directions q_1 .. q_d over the same parameters::

    sums[0] = <u, u>        sums[j] = <u, q_j>

The product of two float32 numbers is exact in float64, so that only additions round, and their order is fixed. A
*piece* is :data:`PIECE` consecutive columns from the start of the block; the last may be shorter.

1. Lane l of a piece adds the products of its columns l, l + 32, l + 64, ... one after the other to 0.
2. The 32 lanes are added in a tree: lane l and lane l + 16, then l and l + 8, ... down to one.
3. Pieces are added to the sum one after the other.

Hence the same bits for any batch, number of threads, instruction set and device, and for any split of a parameter at
multiples of :data:`PIECE`. A u that is not finite, or whose denominator is not, flags its row and counts as 0.
``csrc/dots.h`` states the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dataflex.projection.kernels.block import VALUES_AT_ONCE, Block
from dataflex.projection.kernels.native import kernel

PIECE = 4096
LANES = 32


def accumulate_reference(block: Block, directions: Tensor, sums: Tensor, not_finite: Tensor) -> None:
    """Add the inner products of a block with ``directions`` ``(d, n)`` to ``sums`` ``(b, 1 + d)``, in plain torch."""
    rows, count = block.grads.shape
    width = max(VALUES_AT_ONCE // (max(rows, 1) * PIECE), 1) * PIECE
    for start in range(0, count, width):
        stop = min(start + width, count)
        u = block.values(start, stop)  # (b, n)
        finite = u.isfinite()
        not_finite |= ~finite.all(dim=1)
        u = u.masked_fill(~finite, 0).double()
        for place, factor in enumerate((u, *directions[:, start:stop].double())):
            for sum_of_piece in _piece_sums(u * factor):
                sums[:, place] += sum_of_piece


def _piece_sums(products: Tensor) -> Sequence[Tensor]:
    """The sum of each piece of ``(b, n)`` float64: ``(b,)`` each."""
    rows, count = products.shape
    pieces = -(-count // PIECE)
    products = torch.nn.functional.pad(products, (0, pieces * PIECE - count))
    steps = products.view(rows, pieces, PIECE // LANES, LANES).unbind(dim=2)
    lanes = torch.zeros_like(steps[0])  # (b, pieces, lanes)
    for step in steps:
        lanes += step
    while lanes.shape[2] > 1:
        low, high = lanes.chunk(2, dim=2)
        lanes = low + high
    return lanes[:, :, 0].unbind(dim=1)


@torch.library.custom_op(
    "dataflex::dots_accumulate",
    mutates_args=("sums", "not_finite"),
    schema="(Tensor[] grads, int[] offsets, int[] parameters, Tensor? exp_avg, Tensor? exp_avg_sq, str variant, "
    "float[] constants, Tensor directions, Tensor(a!) sums, Tensor(b!) not_finite) -> ()",
)
def dots_accumulate(
    grads: Sequence[Tensor],
    offsets: Sequence[int],
    parameters: Sequence[int],
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor | None,
    variant: str,
    constants: Sequence[float],
    directions: Tensor,
    sums: Tensor,
    not_finite: Tensor,
) -> None:
    """Add inner products and squares of blocks of parameters to sums, natively where a kernel is there.

    Several blocks in one call: the way to a kernel takes as long as it takes for a small block.

    Args:
        grads: Blocks of one parameter each, ``(b, n_i)`` float32, bfloat16 or float16; rows may be strided, values of a
            row are contiguous.
        offsets: Column of moments and directions where each block starts; it is at a multiple of :data:`PIECE` from
            where its parameter starts.
        parameters: Number of each block's parameter.
        exp_avg: ``(n,)`` float32 first moments, or None for raw gradients.
        exp_avg_sq: ``(n,)`` float32 second moments, or None for raw gradients.
        variant: ``none``, ``adamw``, ``less`` or ``second_moment``.
        constants: :meth:`dataflex.projection.adam.AdamMoments.constants`; zeros for raw gradients.
        directions: ``(d, n)`` float32, d from 0; rows may be strided.
        sums: ``(parameters, b, 1 + d)`` float64, added to: the square, then the inner products.
        not_finite: ``(b,)`` uint8, set to 1 where a value is not finite; such a value counts as 0.
    """
    native = kernel("dots", directions.device)
    for values, start, number in zip(grads, offsets, parameters, strict=True):
        stop = start + values.shape[1]
        mean, square = (None if moment is None else moment[start:stop] for moment in (exp_avg, exp_avg_sq))
        part = Block(values, start, mean, square, variant, constants)
        if native is None:
            accumulate_reference(part, directions[:, start:stop], sums[number], not_finite)
        else:
            native(part, directions=directions[:, start:stop], sums=sums[number], not_finite=not_finite)


@dots_accumulate.register_fake
def _(*args: object) -> None:
    """Nothing is returned: the sums are changed in place."""
