"""Dense projection with normal entries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dataflex.projection.adam import AdamMoments
from dataflex.projection.kernels.block import arguments, signed_seed
from dataflex.projection.kernels.gaussian import gaussian_accumulate
from dataflex.projection.kinds.base import Accumulator, ProjectionConfig, ProjectionKind


class GaussianProjection(ProjectionKind[ProjectionConfig]):
    """Independent normal entries over sqrt(k); any ``dim``.

    Floating point: within 1e-5 of exact arithmetic for any batch, split and device, but not bit-identical
    (:mod:`dataflex.projection.kernels.gaussian`). The slowest kind; take it to compare with.
    """

    name = "gaussian"
    Config = ProjectionConfig

    def accumulator(self, rows: int, *, device: torch.device | str = "cpu") -> GaussianAccumulator:
        """Start the features of ``rows`` rows."""
        return GaussianAccumulator(self.config, rows, device)


class GaussianAccumulator(Accumulator):
    """float64 sums of features in the making."""

    def __init__(self, config: ProjectionConfig, rows: int, device: torch.device | str) -> None:
        super().__init__(rows, config.dim, device)
        self._seed = signed_seed(config.seed)
        self._sums = torch.zeros((rows, self.dim), dtype=torch.float64, device=self.device)
        self._not_finite = torch.zeros(rows, dtype=torch.uint8, device=self.device)

    def _add(self, block: Tensor, offset: int, adam: AdamMoments | None) -> None:
        gaussian_accumulate(*arguments(block, offset, adam), self._sums, self._not_finite, self._seed)

    def features(self) -> Tensor:
        """``(b, k)`` float32; NaN rows where values are not finite."""
        values = (self._sums / math.sqrt(self.dim)).float()
        return values.masked_fill_(self._not_finite.bool()[:, None], math.nan)
