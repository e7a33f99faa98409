"""Gradients, moments and backends for tests of the projection."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from dataflex.projection.adam import AdamMoments, AdamVariant, adam_normalize
from dataflex.projection.kernels import native, sjlt
from dataflex.projection.projector import Projector

VARIANTS: list[AdamVariant | None] = [None, "adamw", "less", "second_moment"]


@contextmanager
def torch_only() -> Iterator[None]:
    """Run without the native kernels; the announcement of it is not a warning here."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("DATAFLEX_NATIVE", "0")
        native.native_status.cache_clear()
        warnings.filterwarnings("ignore", ".* run in plain torch, about", RuntimeWarning)
        try:
            yield
        finally:
            native.native_status.cache_clear()


def gradients(rows: int, count: int, seed: int = 0) -> Tensor:
    """``(rows, count)`` float32 with heavy tails and exact zeros, scaled row by row over several decades."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, count, generator=generator) ** 3
    values[torch.rand(rows, count, generator=generator) < 0.05] = 0
    return values * 10.0 ** -torch.arange(rows)[:, None].clamp(max=6)


def moments(count: int, variant: AdamVariant = "adamw", steps: int = 5, seed: int = 1) -> AdamMoments:
    """What Adam (betas 0.9, 0.999) holds after ``steps`` random gradients."""
    exp_avg, exp_avg_sq = torch.zeros(count), torch.zeros(count)
    for step in range(steps):
        gradient = gradients(1, count, seed=seed + 100 * step)[0]
        exp_avg = 0.9 * exp_avg + 0.1 * gradient
        exp_avg_sq = 0.999 * exp_avg_sq + 0.001 * gradient**2
    return AdamMoments(exp_avg, exp_avg_sq, step=steps, betas=(0.9, 0.999), eps=1e-8, variant=variant)


def adam_for(count: int, variant: AdamVariant | None) -> AdamMoments | None:
    """Moments for a variant; None for raw gradients."""
    return None if variant is None else moments(count, variant)


def by_torch(projector: Projector, grads: Tensor, adam: AdamMoments | None = None) -> Tensor:
    """Features without the native kernels."""
    with torch_only():
        return projector.project(grads, adam)


def exact(projector: Projector, grads: Tensor, adam: AdamMoments | None, sparsity: int = 8) -> Tensor:
    """P u in float64, without a grid."""
    values = (grads if adam is None else adam_normalize(grads, adam)).double()
    spec, features = projector.spec(), torch.zeros(grads.shape[0], projector.dim, dtype=torch.float64)
    for output, negative in sjlt.placements(
        0, grads.shape[1], dim=projector.dim, sparsity=sparsity, seed=int(spec["seed"])
    ):
        features.index_add_(1, output, torch.where(negative, -values, values))
    return features / math.sqrt(sparsity)
