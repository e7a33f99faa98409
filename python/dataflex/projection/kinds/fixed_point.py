"""Projections whose sums are integers: the same bits for any batch, order, number of threads and device."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.plugins.configurable import ConfigT
from dataflex.projection.adam import AdamMoments
from dataflex.projection.kernels import fixed_point, rademacher, sjlt
from dataflex.projection.kernels.binned import BinnedSums
from dataflex.projection.kernels.block import arguments, signed_seed
from dataflex.projection.kinds.base import Accumulator, ProjectionConfig, ProjectionKind
from dataflex.projection.picks import Picks, draw_picks


class FixedPointProjection(ProjectionKind[ConfigT]):
    """Base of the kinds that add integers.

    Attributes:
        limit: Largest integer of the grid.
    """

    limit: ClassVar[int]

    def accumulator(self, rows: int, *, device: torch.device | str = "cpu") -> FixedPointAccumulator:
        """Start the features of ``rows`` rows."""
        return FixedPointAccumulator(self, rows, device)

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


class MaskedConfig(SjltConfig):
    """Parameters of ``masked``."""

    matrix_values: int = Field(
        1 << 14, ge=1, description="values of a matrix that are read; of one that has no more, all"
    )


class MaskedProjection(SjltProjection):
    """``sjlt`` of some values of each large matrix (:mod:`dataflex.projection.picks`), for full fine-tuning.

    Whoever makes the gradients forms those values alone. Rows that come whole (:meth:`project`) are taken to be them.
    """

    name = "masked"
    Config = MaskedConfig
    config: MaskedConfig

    def picks(self, number: int, shape: Sequence[int]) -> Picks | None:
        """Rows and columns that are drawn from the seed."""
        return draw_picks(shape, self.config.matrix_values, self.config.seed, number)


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
    """Integer sums of features in the making: on one grid, or on one a row and block that are added exactly."""

    def __init__(self, kind: FixedPointProjection[Any], rows: int, device: torch.device | str) -> None:
        super().__init__(rows, kind.config.dim, device)
        self._kind = kind
        self._sums = torch.zeros((rows, self.dim), dtype=torch.int64, device=self.device)
        self._not_finite = torch.zeros(rows, dtype=torch.uint8, device=self.device)
        self._saturated = torch.zeros(rows, dtype=torch.int64, device=self.device)
        self._exponent = 0  # of the one grid
        self._binned: BinnedSums | None = None  # sums of blocks with grids of their own, which `_sums` holds in turn

    def _add(self, block: Tensor, offset: int, adam: AdamMoments | None) -> None:
        exponents = self._common_grid(adam) if fixed_point.shares_grid(adam) else self._own_grids(block, adam)
        results = (exponents, self._sums, self._not_finite, self._saturated)
        self._kind.accumulate(arguments(block, offset, adam), results)
        if not fixed_point.shares_grid(adam):
            self._binned = self._binned or BinnedSums(self.rows, self.dim, self.device)
            self._binned.add(self._sums, exponents)

    def _common_grid(self, adam: AdamMoments | None) -> Tensor:
        """(b,) int32 exponents, all the same."""
        assert adam is not None
        gradients = None if adam.variant == "less" else adam.step + 1
        limit, rate = self._kind.limit, adam.largest_rate
        self._exponent = fixed_point.adam_exponent(adam.effective_betas, limit, rate, gradients)
        return torch.full((self.rows,), self._exponent, dtype=torch.int32, device=self.device)

    def _own_grids(self, block: Tensor, adam: AdamMoments | None) -> Tensor:
        """(b,) int32 exponents, of a row in this block."""
        if adam is None:
            return fixed_point.raw_exponents(block, self._kind.limit)
        return fixed_point.second_moment_exponents(block, adam, self._kind.limit)

    def features(self) -> Tensor:
        """``(b, k)`` float32; NaN rows where values are not finite; warns of values beyond the grid."""
        saturated = self._saturated[self._not_finite == 0]
        if (count := int(saturated.sum())) > 0:
            rows = int((saturated > 0).sum())
            warnings.warn(
                f"{self._kind.name}: {count} values in {rows} of {self.rows} rows lie beyond the fixed-point grid and "
                f"were clamped: the moments are not those of one Adam run",
                RuntimeWarning,
                stacklevel=2,
            )
        sums = self._sums if self._binned is None else self._binned.total()
        return fixed_point.features(sums, self._not_finite, self._exponent, self._kind.scale)
