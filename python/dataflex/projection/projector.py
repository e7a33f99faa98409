"""Random projection of per-sample gradients: b x p gradients to b x k features that keep inner products.

``phi = P u`` with E[P^T P] = I, u the gradient or its Adam-normalised form. P is never stored: its entries are a
function of (seed, parameter index, output index), so gradients may arrive whole or in blocks of parameters::

    projector = Projector(dim=4096)
    features = projector.project(grads, adam=moments)               # (b, p) -> (b, 4096)

    accumulator = projector.accumulator(rows=b)
    for offset, block, moments in blocks:                           # the same features
        accumulator.add(block, offset, moments)
    features = accumulator.features()

The relative error of inner products is about 1/sqrt(k) with every kind: ``sjlt`` (sparse, the default), ``rademacher``
and ``gaussian`` (dense); ``identity`` does not project. The first two give the same bits for any batch, order of
blocks, number of threads and device, ``adamw`` and ``less`` also for any division in blocks; that of raw gradients and
of ``second_moment`` is part of the rounding (:mod:`dataflex.projection.kernels.fixed_point`). Kinds of other packages
are subclasses of :class:`ProjectionKind` registered by the hook ``register_projections``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dataflex.plugins.registry import registry
from dataflex.projection.adam import AdamMoments, AdamVariant, adam_normalize
from dataflex.projection.kinds.base import Accumulator, ProjectionConfig, ProjectionKind, check_two_dimensions

__all__ = [
    "Accumulator",
    "AdamMoments",
    "AdamVariant",
    "ProjectionConfig",
    "ProjectionKind",
    "Projector",
    "adam_normalize",
]


class Projector:
    """Projects per-sample gradients to ``dim`` features with a projection of the registry.

    Sources: ``sjlt`` is a sparse Johnson-Lindenstrauss map (Kane and Nelson, arXiv 1012.1577) in block-permutation
    form; ``rademacher`` and ``gaussian`` are the dense maps of Johnson and Lindenstrauss.

    Args:
        dim: Dimension k of the features; for ``sjlt`` a multiple of ``16 * sparsity``.
        kind: Name of a registered projection: ``sjlt``, ``rademacher``, ``gaussian``, ``identity``, or a plugin's.
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
        check_two_dimensions(grads)
        return self.kind.project(grads, adam)

    def accumulator(self, rows: int, *, device: torch.device | str = "cpu") -> Accumulator:
        """Start the features of ``rows`` rows whose gradients arrive in blocks of parameters.

        Args:
            rows: b.
            device: Where the blocks will lie.
        """
        return self.kind.accumulator(rows, device=device)

    def spec(self) -> dict[str, Any]:
        """JSON-able facts that fix the matrix, for fingerprints."""
        return self.kind.spec()
