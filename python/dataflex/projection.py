"""Random projection of per-sample gradients: b x p gradients to b x k features that keep inner products.

``phi = P u`` with E[P^T P] = I, u the gradient or its Adam-normalised form. P is never stored: its entries are a
function of (seed, parameter index, output index), so gradients may arrive whole or in blocks of parameters::

    projector = Projector(dim=4096)
    features = projector.project(grads, adam=moments)               # (b, p) -> (b, 4096)

    accumulator = projector.accumulator(rows=b)
    for offset, block, moments in blocks:                           # the same features, bit for bit
        accumulator.add(block, offset, moments)
    features = accumulator.features()

The relative error of inner products is about 1/sqrt(k). :mod:`dataflex.sjlt` describes the default kind and why its
features do not depend on batch, block or thread; kinds of other packages are subclasses of :class:`ProjectionKind`
registered by the hook ``register_projections``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from dataflex import sjlt
from dataflex.adam import AdamMoments, AdamVariant, adam_normalize
from dataflex.errors import ProjectionError
from dataflex.native import announce, native_status
from dataflex.plugins import registry
from dataflex.projection_kind import VALUE_TYPES, Accumulator, ProjectionConfig, ProjectionKind

__all__ = [
    "Accumulator",
    "AdamMoments",
    "AdamVariant",
    "IdentityProjection",
    "ProjectionConfig",
    "ProjectionKind",
    "Projector",
    "SjltConfig",
    "SjltProjection",
    "adam_normalize",
]


class SjltConfig(ProjectionConfig):
    """Parameters of ``sjlt``."""

    sparsity: int = Field(8, ge=1, description="nonzeros s in each column; below 8, heavy tails cost accuracy")


class SjltProjection(ProjectionKind[SjltConfig]):
    """Block-permutation sparse Johnson-Lindenstrauss; ``dim`` is a multiple of ``16 * sparsity``.

    Features are bit-identical for any batch size, split in blocks, number of threads and device
    (:mod:`dataflex.sjlt`). On the CPU it runs in C++; tensors on other devices, and installations without the
    native extension, use plain torch, which is announced once.
    """

    name = "sjlt"
    Config = SjltConfig

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

    def accumulator(
        self, rows: int, *, device: torch.device | str = "cpu", exponents: Tensor | None = None
    ) -> SjltAccumulator:
        """Start the features of ``rows`` rows; without ``exponents`` every block needs moments."""
        return SjltAccumulator(self.config, rows, device, exponents)

    def row_exponents(self, grads: Tensor) -> Tensor:
        """The grid of raw gradients: :func:`dataflex.sjlt.row_exponents`."""
        _check_two_dimensions(grads)
        return sjlt.row_exponents(grads)


class SjltAccumulator(Accumulator):
    """Integer totals of ``sjlt`` features."""

    def __init__(
        self, config: SjltConfig, rows: int, device: torch.device | str, exponents: Tensor | None = None
    ) -> None:
        super().__init__(rows, config.dim, device)
        if exponents is not None and (exponents.shape != (rows,) or exponents.dtype != torch.int32):
            raise ProjectionError(
                f"exponents must be int32 of shape ({rows},), got {exponents.dtype} {tuple(exponents.shape)}"
            )
        self.config = config
        self._raw = exponents is not None
        self._exponents = exponents if exponents is None else exponents.cpu()
        self._totals = torch.zeros((rows, config.dim), dtype=torch.int64, device=self.device)
        self._not_finite = torch.zeros(rows, dtype=torch.uint8, device=self.device)
        self._saturated = torch.zeros(rows, dtype=torch.int64, device=self.device)

    def _add(self, block: Tensor, offset: int, adam: AdamMoments | None) -> None:
        exponents = self._grid(adam)
        if self.device.type == "cpu" and (native := native_status().module) is not None:
            self._add_native(native, block, offset, adam, exponents)
            return
        announce(_why_slow(self.device))
        sjlt.accumulate(
            block,
            offset,
            adam,
            exponents,
            seed=self.config.seed,
            sparsity=self.config.sparsity,
            totals=self._totals,
            not_finite=self._not_finite,
            saturated=self._saturated,
        )

    def _add_native(self, native: Any, block: Tensor, offset: int, adam: AdamMoments | None, exponents: Tensor) -> None:
        native.sjlt_accumulate(
            # numpy knows no bfloat16: 16-bit floats travel as their bits.
            grads=(block if block.dtype == torch.float32 else block.view(torch.int16)).numpy(),
            type=VALUE_TYPES[block.dtype],
            offset=offset,
            variant="none" if adam is None else adam.variant,
            constants=(0.0,) * 7 if adam is None else adam.constants(),
            exp_avg=None if adam is None else adam.exp_avg.detach().contiguous().numpy(),
            exp_avg_sq=None if adam is None else adam.exp_avg_sq.detach().contiguous().numpy(),
            exponents=exponents.numpy(),
            seed=self.config.seed,
            sparsity=self.config.sparsity,
            totals=self._totals.numpy(),
            not_finite=self._not_finite.numpy(),
            saturated=self._saturated.numpy(),
            threads=torch.get_num_threads(),
        )

    def _grid(self, adam: AdamMoments | None) -> Tensor:
        """(b,) int32 exponents of the rows' grids."""
        if adam is not None and not self._raw:
            self._exponents = torch.full((self.rows,), sjlt.adam_exponent(adam.betas), dtype=torch.int32, device="cpu")
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
            cause = "the exponents do not fit the rows" if self._raw else "the moments are not those of one Adam run"
            warnings.warn(
                f"sjlt: {count} values in {int((saturated > 0).sum())} of {self.rows} rows lie beyond the fixed-point "
                f"grid and were clamped: {cause}",
                RuntimeWarning,
                stacklevel=2,
            )
        return sjlt.features(self._totals, self._not_finite, self._exponents, self.config.sparsity)


class IdentityProjection(ProjectionKind[ProjectionConfig]):
    """No projection: the features are u itself in float32, ``dim`` is the number of parameters.

    For debugging and small models: b x p features need memory accordingly.
    """

    name = "identity"
    Config = ProjectionConfig

    def accumulator(
        self, rows: int, *, device: torch.device | str = "cpu", exponents: Tensor | None = None
    ) -> IdentityAccumulator:
        """Start the features of ``rows`` rows; ``exponents`` are not needed."""
        del exponents
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


class Projector:
    """Projects per-sample gradients to ``dim`` features with a projection of the registry.

    Args:
        dim: Dimension k of the features; for ``sjlt`` a multiple of ``16 * sparsity``.
        kind: Name of a registered projection: ``sjlt``, ``identity``, or a plugin's.
        seed: Seed of the matrix, in [0, 2^64).
        options: The kind's own parameters (``sparsity=8`` for ``sjlt``).

    Raises:
        PluginError: Unknown kind.
        ConfigError: Unknown option, or one of the wrong type.
        ProjectionError: The kind refuses this combination.
    """

    def __init__(self, dim: int, kind: str = "sjlt", seed: int = 0, **options: Any) -> None:
        self.kind: ProjectionKind[Any] = registry().get("projection", kind)(dim=dim, seed=seed, **options)

    @property
    def dim(self) -> int:
        """Dimension k of the features."""
        return int(self.kind.config.dim)

    def project(self, grads: Tensor, adam: AdamMoments | None = None) -> Tensor:
        """Project b rows.

        Args:
            grads: ``(b, p)`` float32, bfloat16 or float16; rows may be strided.
            adam: Moments of the p parameters on the same device: gradients are Adam-normalised first. None: raw.

        Returns:
            ``(b, k)`` float32 on the device of ``grads``. A row with a value that is not finite is NaN throughout.

        Raises:
            ProjectionError: Shapes, dtypes or devices do not fit.
            GradientError: The betas give no bound for Adam-normalised values.
        """
        _check_two_dimensions(grads)
        return self.kind.project(grads, adam)

    def accumulator(
        self, rows: int, *, device: torch.device | str = "cpu", exponents: Tensor | None = None
    ) -> Accumulator:
        """Start the features of ``rows`` rows whose gradients arrive in blocks of parameters.

        Args:
            rows: b.
            device: Where the blocks will lie.
            exponents: For raw gradients, :meth:`row_exponents` of the whole rows (the minimum over their blocks):
                the fixed-point grid must be known before the first block. None with Adam moments.
        """
        return self.kind.accumulator(rows, device=device, exponents=exponents)

    def row_exponents(self, grads: Tensor) -> Tensor | None:
        """What :meth:`accumulator` must know of raw gradients ``(b, p)`` beforehand; None if nothing."""
        return self.kind.row_exponents(grads)

    def spec(self) -> dict[str, Any]:
        """JSON-able facts that fix the matrix, for fingerprints."""
        return self.kind.spec()


def _check_two_dimensions(grads: Tensor) -> None:
    if grads.ndim != 2:
        raise ProjectionError(f"gradients must have shape (b, p), got {tuple(grads.shape)}")


def _why_slow(device: torch.device) -> str:
    why = f"there is no kernel for {device.type}" if device.type != "cpu" else native_status().reason
    return f"sjlt projections run in plain torch, about 10 times slower than the native kernel: {why}"
