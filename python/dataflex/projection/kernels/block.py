"""A block of gradients as the operators receive it: tensors and numbers alone, as ``torch.library`` wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dataflex.projection.adam import AdamMoments, normalize

SCHEMA = "Tensor grads, int offset, Tensor? exp_avg, Tensor? exp_avg_sq, str variant, float[] constants"
"""The arguments of :class:`Block` in an operator's schema."""
VALUE_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
VALUES_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True)
class Block:
    """Gradients of b samples over n consecutive parameters, with what normalises them.

    Attributes:
        grads: ``(b, n)`` float32, bfloat16 or float16.
        offset: Parameter index of the first column.
        exp_avg: ``(n,)`` float32, or None for raw gradients.
        exp_avg_sq: ``(n,)`` float32, or None for raw gradients.
        variant: ``none``, ``adamw``, ``less`` or ``second_moment``.
        constants: The seven numbers of :meth:`dataflex.projection.adam.AdamMoments.constants`; zeros for raw gradients.
    """

    grads: Tensor
    offset: int
    exp_avg: Tensor | None
    exp_avg_sq: Tensor | None
    variant: str
    constants: Sequence[float]

    def pieces(self) -> Iterator[tuple[int, int, Tensor]]:
        """``(start, stop, u)`` with ``(b, stop - start)`` float32 u, a few columns at a time."""
        width = max(VALUES_AT_ONCE // max(self.grads.shape[0], 1), 1)
        for start in range(0, self.grads.shape[1], width):
            stop = min(start + width, self.grads.shape[1])
            yield start, stop, self.values(start, stop)

    def values(self, start: int, stop: int) -> Tensor:
        """``(b, stop - start)`` float32 u of some columns."""
        part = self.grads[:, start:stop]
        if self.exp_avg is None or self.exp_avg_sq is None:
            return part.float()
        return normalize(part, self.exp_avg[start:stop], self.exp_avg_sq[start:stop], self.constants, self.variant)

    def native(self) -> dict[str, Any]:
        """The block as keyword arguments of the CPU kernels."""
        return {
            # numpy knows no bfloat16: 16-bit floats travel as their bits.
            "grads": (self.grads if self.grads.dtype == torch.float32 else self.grads.view(torch.int16)).numpy(),
            "type": VALUE_TYPES[self.grads.dtype],
            "offset": self.offset,
            "variant": self.variant,
            "constants": tuple(self.constants),
            "exp_avg": None if self.exp_avg is None else self.exp_avg.numpy(),
            "exp_avg_sq": None if self.exp_avg_sq is None else self.exp_avg_sq.numpy(),
            "threads": torch.get_num_threads(),
        }


def arguments(block: Tensor, offset: int, adam: AdamMoments | None) -> tuple[Any, ...]:
    """The leading arguments of an operator (:data:`SCHEMA`)."""
    return block.detach(), offset, *normalisation(adam)


def normalisation(adam: AdamMoments | None) -> tuple[Any, ...]:
    """What normalises a block, as the arguments of an operator: moments, variant, constants."""
    if adam is None:
        return None, None, "none", (0.0,) * 7
    return adam.exp_avg.detach().contiguous(), adam.exp_avg_sq.detach().contiguous(), adam.variant, adam.constants()


def signed_seed(seed: int) -> int:
    """A seed in [0, 2^64) as the signed 64-bit number that an operator's ``int`` can hold."""
    return seed - 2**64 if seed >= 2**63 else seed


def unsigned_seed(seed: int) -> int:
    """What :func:`signed_seed` was given."""
    return seed % 2**64
