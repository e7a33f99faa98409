"""The contract of a projection kind: what a plugin implements to add one.

A kind makes accumulators; an accumulator turns blocks of gradients into features. Blocks may come in any order and of
any width, so a kind must address its matrix by parameter index, never by call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.plugins.configurable import ComponentConfig, ConfigT, Configurable
from dataflex.projection.adam import AdamMoments
from dataflex.projection.kernels.block import VALUE_TYPES
from dataflex.projection.picks import Picks


class ProjectionConfig(ComponentConfig):
    """What every kind of projection is built from."""

    dim: int = Field(ge=1, description="dimension k of the features")
    seed: int = Field(0, ge=0, lt=2**64, description="seed of the matrix")


class Accumulator(ABC):
    """Features of b rows in the making, fed with blocks of parameters in any order, each parameter at most once.

    Either every block comes with the moments of its parameters, or none does.

    Attributes:
        rows: b.
        dim: k.
        device: Where the blocks must lie.
    """

    def __init__(self, rows: int, dim: int, device: torch.device | str) -> None:
        self.rows = rows
        self.dim = dim
        self.device = torch.empty(0, device=device).device  # "cuda" becomes "cuda:0"
        self._settings: tuple[Any, ...] | None = None
        self._started = False

    def add(self, block: Tensor, offset: int, adam: AdamMoments | None = None) -> None:
        """Add the gradients of parameters ``offset`` to ``offset + n``.

        Raw gradients, and those over the root of a second moment, have no size known beforehand: a kind may round the
        values of a row in a block by their own largest. The features' last bits then depend on where blocks are cut
        (not on their order, nor on other rows), so cut them at places that the parameters' shapes fix.

        Args:
            block: ``(b, n)`` float32, bfloat16 or float16; rows may be strided, values of a row are contiguous.
            offset: Parameter index of the first column.
            adam: Moments of those n parameters: the values are normalised first.

        Raises:
            ProjectionError: Shape, dtype, layout, device or moments do not fit.
        """
        check_block(block, offset, adam, rows=self.rows, device=self.device)
        settings = None if adam is None else adam.settings
        if self._started:
            check_settings(settings, self._settings)
        self._settings, self._started = settings, True
        if adam is None:
            self._add(block.detach(), offset, None)
            return
        for start, stop, moments in adam.runs():
            self._add(block.detach()[:, start:stop], offset + start, moments)

    @abstractmethod
    def _add(self, block: Tensor, offset: int, adam: AdamMoments | None) -> None:
        """Add a block that was checked, whose parameters share a learning rate."""

    @abstractmethod
    def features(self) -> Tensor:
        """``(b, k)`` float32 features of what was added; NaN in a row whose values are not all finite."""


class ProjectionKind(Configurable[ConfigT], ABC):
    """One way to project; built from ``dim``, ``seed`` and its own options.

    A subclass names its options in ``Config`` (a :class:`ProjectionConfig`) and implements :meth:`accumulator`.

    Attributes:
        version: Grows when the same options give another matrix.
    """

    name: ClassVar[str] = "projection"
    version: ClassVar[int] = 1

    @abstractmethod
    def accumulator(self, rows: int, *, device: torch.device | str = "cpu") -> Accumulator:
        """Start the features of some rows.

        Args:
            rows: b.
            device: Where the blocks will lie.
        """

    def project(self, grads: Tensor, adam: AdamMoments | None = None) -> Tensor:
        """Project whole rows.

        Args:
            grads: ``(b, p)`` float32, bfloat16 or float16.
            adam: Moments of the p parameters, or None for raw gradients.

        Returns:
            ``(b, k)`` float32.

        Raises:
            ProjectionError: Shapes, dtypes or devices do not fit.
        """
        accumulator = self.accumulator(grads.shape[0], device=grads.device)
        accumulator.add(grads, 0, adam)
        return accumulator.features()

    def picks(self, number: int, shape: Sequence[int]) -> Picks | None:
        """Coordinates of a parameter that make features; None: all of them, as in every kind but ``masked``.

        Args:
            number: The parameter's place among the trainable ones.
            shape: Its shape.
        """
        del number, shape
        return None

    def spec(self) -> dict[str, Any]:
        """JSON-able facts that fix the matrix, for fingerprints."""
        return {"kind": self.name, "version": self.version, **self.config.model_dump(mode="json")}


def check_two_dimensions(grads: Tensor) -> None:
    """Raise ProjectionError unless gradients are ``(b, p)``."""
    if grads.ndim != 2:
        raise ProjectionError(f"gradients must have shape (b, p), got {tuple(grads.shape)}")


def check_block(block: Tensor, offset: int, adam: AdamMoments | None, *, rows: int, device: torch.device) -> None:
    """Raise ProjectionError unless a block, its place and its moments fit, as :meth:`Accumulator.add` says."""
    shape = tuple(block.shape)
    problems = []
    if block.ndim != 2 or shape[0] != rows:
        problems.append(f"gradients must have shape ({rows}, n), got {shape}")
    elif shape[1] > 1 and block.stride(1) != 1:
        problems.append(f"values of a row must be contiguous, got strides {block.stride()}: call .contiguous()")
    if block.dtype not in VALUE_TYPES:
        problems.append(f"gradients must be float32, bfloat16 or float16, got {block.dtype}")
    if block.device != device:
        problems.append(f"gradients must be on {device}, got {block.device}")
    if offset < 0:
        problems.append(f"offset must be at least 0, got {offset}")
    if adam is not None and len(adam) != shape[-1]:
        problems.append(f"moments of {len(adam)} parameters do not fit gradients of {shape[-1]}")
    if adam is not None and adam.exp_avg.device != block.device:
        problems.append(f"moments are on {adam.exp_avg.device}, gradients on {block.device}")
    if problems:
        raise ProjectionError("; ".join(problems))


def check_settings(got: Any, before: Any) -> None:
    """Raise ProjectionError if two blocks of one gradient have moments of other ``settings``, or only one has any."""
    if got != before:
        raise ProjectionError(
            f"blocks of one gradient must share step, betas, eps, variant and largest rate of the moments: "
            f"got {got} after {before}"
        )
