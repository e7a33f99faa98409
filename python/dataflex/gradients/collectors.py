"""What becomes of the gradients of items that are computed together, while they stream by in blocks of parameters.

Raw gradients that are projected are held whole for one batch, b x p of at most :data:`RAW_BLOCK_VALUES`: the
fixed-point grid of a row depends on its largest entry, which is known only after the backward pass. A second backward
pass would double the cost, and a grid from an upper bound would lose precision; a batch of fewer rows costs neither.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from dataflex.projection.projector import AdamMoments, Projector

RAW_BLOCK_VALUES = 1 << 26
"""Most values (b x p) of raw gradients that are held at once, 256 MiB; a single row may be larger."""


class Collector(Protocol):
    """Takes the gradients of g items that are computed together."""

    def add(self, block: Tensor, offset: int) -> None:
        """Take one block.

        Args:
            block: ``(g, n)``, float32 or wider, on the model's device; blocks come in any order, every parameter once.
            offset: Parameter index of the first column; no block crosses from one parameter into another.
        """

    def result(self) -> Tensor:
        """What came of them, ``(g, ...)``, once all blocks are there."""


class WholeRows:
    """Collects the gradients themselves: ``(g, p)`` float32.

    Args:
        rows: g.
        num_parameters: p.
        device: Of the blocks.
    """

    def __init__(self, rows: int, num_parameters: int, device: torch.device) -> None:
        self._values = torch.zeros((rows, num_parameters), device=device)

    def add(self, block: Tensor, offset: int) -> None:
        """Copy the block to its place."""
        self._values[:, offset : offset + block.shape[1]] = block

    def result(self) -> Tensor:
        """The rows."""
        return self._values


class RawFeatures(WholeRows):
    """Projects gradients as they are: ``(g, k)`` float32; arguments as for :class:`WholeRows`, and the projection."""

    def __init__(self, rows: int, num_parameters: int, device: torch.device, projector: Projector) -> None:
        super().__init__(rows, num_parameters, device)
        self._projector = projector

    def result(self) -> Tensor:
        """The features."""
        return self._projector.project(super().result())


class AdamFeatures:
    """Projects Adam-normalised gradients: ``(g, k)`` float32.

    Args:
        rows: g.
        device: Of the blocks.
        projector: P.
        adam: Moments of all p parameters.
    """

    def __init__(self, rows: int, device: torch.device, projector: Projector, adam: AdamMoments) -> None:
        self._accumulator = projector.accumulator(rows, device=device)
        self._adam = adam

    def add(self, block: Tensor, offset: int) -> None:
        """Normalise, project and add the block."""
        self._accumulator.add(block.float(), offset, self._adam.slice(offset, offset + block.shape[1]))

    def result(self) -> Tensor:
        """The features."""
        return self._accumulator.features()
