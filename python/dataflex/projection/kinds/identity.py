"""No projection: features are the values themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.projection.adam import AdamMoments, adam_normalize
from dataflex.projection.kinds.base import Accumulator, ProjectionConfig, ProjectionKind


class IdentityProjection(ProjectionKind[ProjectionConfig]):
    """No projection: the features are u itself in float32, ``dim`` is the number of parameters.

    For debugging and small models: b x p features need memory accordingly.
    """

    name = "identity"
    Config = ProjectionConfig

    def accumulator(self, rows: int, *, device: torch.device | str = "cpu") -> IdentityAccumulator:
        """Start the features of ``rows`` rows."""
        return IdentityAccumulator(rows, self.config.dim, device)

    def project(self, grads: Tensor, adam: AdamMoments | None = None) -> Tensor:
        """Return u as it is.

        Raises:
            ProjectionError: ``dim`` is not the number of parameters.
        """
        if grads.shape[-1] != self.config.dim:
            raise ProjectionError(
                f"identity: dim must be the number of parameters {grads.shape[-1]}, got {self.config.dim}",
                hint="identity is for debugging; use projection 'sjlt'",
            )
        return super().project(grads, adam)


class IdentityAccumulator(Accumulator):
    """u, column by column."""

    def __init__(self, rows: int, dim: int, device: torch.device | str) -> None:
        super().__init__(rows, dim, device)
        self._values = torch.zeros((rows, dim), dtype=torch.float32, device=self.device)

    def _add(self, block: Tensor, offset: int, adam: AdamMoments | None) -> None:
        stop = offset + block.shape[1]
        if stop > self.dim:
            raise ProjectionError(f"identity: parameters {offset} to {stop} do not fit in dim {self.dim}")
        self._values[:, offset:stop] = block.float() if adam is None else adam_normalize(block, adam)

    def features(self) -> Tensor:
        """``(b, k)`` float32 values; a row that is not finite is NaN throughout, as with the other kinds."""
        broken = ~self._values.isfinite().all(dim=1, keepdim=True)
        return self._values.masked_fill(broken, torch.nan)
