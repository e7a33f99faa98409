"""Projections whose sums are integers: the same bits for any batch, block split, number of threads and device."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.plugins.configurable import ConfigT
from dataflex.projection.adam import AdamMoments
from dataflex.projection.kernels import fixed_point, rademacher, sjlt
from dataflex.projection.kernels.block import arguments, signed_seed
from dataflex.projection.kinds.base import Accumulator, ProjectionConfig, ProjectionKind, check_two_dimensions


class FixedPointProjection(ProjectionKind[ConfigT]):
    """Base of the kinds that add integers.

    Attributes:
        limit: Largest integer of the grid.
    """

    limit: ClassVar[int]

    def accumulator(
        self, rows: int, *, device: torch.device | str = "cpu", exponents: Tensor | None = None
    ) -> FixedPointAccumulator:
        """Start the features of ``rows`` rows; without ``exponents`` every block needs moments."""
        return FixedPointAccumulator(self, rows, device, exponents)

    def row_exponents(self, grads: Tensor) -> Tensor:
        """The grid of raw gradients: :func:`dataflex.projection.kernels.fixed_point.row_exponents`."""
        check_two_dimensions(grads)
        return fixed_point.row_exponents(grads, self.limit)

    @property
    @abstractmethod
    def scale(self) -> float:
        """P over the matrix of 0 and +-1 that the sums are made with."""

    @abstractmethod
    def accumulate(self, block: tuple[Any, ...], results: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """Add the ``arguments`` of a block (``kernels.block``) to (exponents, sums, not_finite, saturated)."""


class SjltConfig(ProjectionConfig):
    """Parameters of ``sjlt``."""

    sparsity: int = Field(8, ge=1, description="nonzeros s in each column; below 8, heavy tails cost accuracy")


class SjltProjection(FixedPointProjection[SjltConfig]):
    """Block-permutation sparse Johnson-Lindenstrauss; ``dim`` is a multiple of ``16 * sparsity``.

    Within 1e-5 of exact arithmetic (:mod:`dataflex.projection.kernels.fixed_point` says for which rows and betas). The
    cheapest kind, and as accurate as a dense one.
    """

    name = "sjlt"
    Config = SjltConfig
    limit = sjlt.LIMIT

    def __init__(self, **params: Any) -> None:
        """Validate the parameters.

        Raises:
            ConfigError: A parameter is unknown or of the wrong type.
            ProjectionError: ``dim`` does not fit ``sparsity``.
        """
        super().__init__(**params)
        dim, step = self.config.dim, sjlt.LANES * self.config.sparsity
        if dim % step:
            nearest = max(step, round(dim / step) * step)
            smaller = next((s for s in range(self.config.sparsity - 1, 1, -1) if dim % (sjlt.LANES * s) == 0), None)
            raise ProjectionError(
                f"sjlt: dim must be a multiple of 16 * sparsity = {step}, got {dim}",
                hint=f"use dim {nearest}" + (f", or sparsity {smaller} (less accurate)" if smaller else ""),
            )

    @property
    def scale(self) -> float:
        """1 / sqrt(s)."""
        return 1 / math.sqrt(self.config.sparsity)

    def accumulate(self, block: tuple[Any, ...], results: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """Add a block to the sums."""
        sjlt.sjlt_accumulate(*block, *results, signed_seed(self.config.seed), self.config.sparsity)


class RademacherProjection(FixedPointProjection[ProjectionConfig]):
    """Dense random signs over sqrt(k); any ``dim``.

    Within 5e-4 of exact arithmetic on its two-byte grid (:mod:`dataflex.projection.kernels.rademacher`; rows and betas
    as for ``sjlt``). Costs k
    operations a parameter: take it to compare with, or where few outputs must be dense.
    """

    name = "rademacher"
    Config = ProjectionConfig
    limit = rademacher.LIMIT

    @property
    def scale(self) -> float:
        """1 / sqrt(k)."""
        return 1 / math.sqrt(self.config.dim)

    def accumulate(self, block: tuple[Any, ...], results: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """Add a block to the sums."""
        rademacher.rademacher_accumulate(*block, *results, signed_seed(self.config.seed))


class FixedPointAccumulator(Accumulator):
    """Integer sums of features in the making."""

    def __init__(
        self,
        kind: FixedPointProjection[Any],
        rows: int,
        device: torch.device | str,
        exponents: Tensor | None,
    ) -> None:
        super().__init__(rows, kind.config.dim, device)
        if exponents is not None and (exponents.shape != (rows,) or exponents.dtype != torch.int32):
            raise ProjectionError(
                f"exponents must be int32 of shape ({rows},), got {exponents.dtype} {tuple(exponents.shape)}"
            )
        self._kind = kind
        self._raw = exponents is not None
        self._exponents = exponents if exponents is None else exponents.to(self.device)
        self._sums = torch.zeros((rows, self.dim), dtype=torch.int64, device=self.device)
        self._not_finite = torch.zeros(rows, dtype=torch.uint8, device=self.device)
        self._saturated = torch.zeros(rows, dtype=torch.int64, device=self.device)

    def _add(self, block: Tensor, offset: int, adam: AdamMoments | None) -> None:
        results = (self._grid(adam), self._sums, self._not_finite, self._saturated)
        self._kind.accumulate(arguments(block, offset, adam), results)

    def _grid(self, adam: AdamMoments | None) -> Tensor:
        """(b,) int32 exponents of the rows' grids."""
        if adam is not None and not self._raw:
            gradients = None if adam.variant == "less" else adam.step + 1
            exponent = fixed_point.adam_exponent(adam.effective_betas, self._kind.limit, adam.largest_rate, gradients)
            self._exponents = torch.full((self.rows,), exponent, dtype=torch.int32, device=self.device)
        elif adam is not None or self._exponents is None:
            got = "raw gradients" if adam is None else "gradients with moments"
            raise ProjectionError(
                f"this accumulator was started {'with' if self._raw else 'without'} exponents and got {got}",
                hint="raw gradients need their grid before the first block: accumulator(rows, "
                "exponents=projector.row_exponents(grads)); gradients with moments need none: accumulator(rows)",
            )
        return self._exponents

    def features(self) -> Tensor:
        """``(b, k)`` float32; NaN rows where values are not finite; warns of values beyond the grid."""
        if self._exponents is None:
            return torch.zeros((self.rows, self.dim), dtype=torch.float32, device=self.device)
        saturated = self._saturated[self._not_finite == 0]
        if (count := int(saturated.sum())) > 0:
            rows = int((saturated > 0).sum())
            cause = "the exponents do not fit the rows" if self._raw else "the moments are not those of one Adam run"
            warnings.warn(
                f"{self._kind.name}: {count} values in {rows} of {self.rows} rows lie beyond the fixed-point grid and "
                f"were clamped: {cause}",
                RuntimeWarning,
                stacklevel=2,
            )
        return fixed_point.features(self._sums, self._not_finite, self._exponents, self._kind.scale)
