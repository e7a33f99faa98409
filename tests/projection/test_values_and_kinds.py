"""Values that cannot be used, other kinds of projection, and what fixes a matrix."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.projection.adam import AdamMoments, AdamVariant, adam_normalize
from dataflex.projection.kernels import native
from dataflex.projection.projector import Accumulator, ProjectionConfig, ProjectionKind, Projector
from helpers.projections import VARIANTS, adam_for, gradients, moments, torch_only

# Values that cannot be used


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_is_nan_and_alone(backend: str, variant: AdamVariant | None, value: float) -> None:
    grads, adam, projector = gradients(3, 200), adam_for(200, variant), Projector(128)
    expected = projector.project(grads, adam)
    grads[1, 77] = value
    features = projector.project(grads, adam)
    assert features[1].isnan().all()
    assert torch.equal(features[[0, 2]], expected[[0, 2]])


def test_overflow_in_adam_is_not_finite(backend: str) -> None:
    grads = torch.ones(2, 20)
    grads[0, 3] = 1e30
    features = Projector(128).project(grads, moments(20))
    assert features[0].isnan().all()
    assert features[1].isfinite().all()


def test_values_beyond_the_grid_are_counted_and_warned_about(backend: str) -> None:
    adam = AdamMoments(torch.full((50,), 100.0), torch.full((50,), 1e-4), 1000, (0.9, 0.999), 1e-8)
    grads = torch.zeros(3, 50)
    grads[2, 7] = math.nan
    with pytest.warns(RuntimeWarning, match="100 values in 2 of 3 rows lie beyond .* not those of one Adam run"):
        features = Projector(128).project(grads, adam)
    clamped = torch.full((1, 50), 2.0**3)
    assert torch.equal(features[:1], Projector(128).project(clamped))


def test_moments_of_the_run_do_not_saturate(backend: str) -> None:
    # The largest value that the bound allows: one large gradient after many that were small.
    steps, (b1, b2) = 3000, (0.9, 0.999)
    mean = square = torch.zeros(1, dtype=torch.float64)
    for step in range(steps):
        gradient = (b2 / b1) ** (step - steps)
        mean, square = b1 * mean + (1 - b1) * gradient, b2 * square + (1 - b2) * gradient**2
    adam = AdamMoments(mean.float(), square.float(), steps, (b1, b2), 0.0)
    grads = torch.ones(1, 1)
    assert adam_normalize(grads, adam).item() > 7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Projector(128).project(grads, adam).isfinite().all()
        fast = replace(adam, largest_rate=31.0, rates=((1, 31.0),))
        assert Projector(128).project(grads, fast).isfinite().all()


# Identity, spec, fallback


def test_identity_features_are_the_values() -> None:
    grads, adam, projector = gradients(3, 40).bfloat16(), moments(40), Projector(40, kind="identity")
    assert torch.equal(projector.project(grads), grads.float())
    assert torch.equal(projector.project(grads, adam), adam_normalize(grads, adam))
    accumulator = projector.accumulator(3)
    accumulator.add(grads[:, 10:], 10)
    accumulator.add(grads[:, :10], 0)
    assert torch.equal(accumulator.features(), grads.float())


def test_identity_marks_rows_like_the_other_kinds_and_checks_sizes() -> None:
    grads, projector = torch.ones(2, 4), Projector(4, kind="identity")
    grads[0, 0] = math.nan
    assert projector.project(grads).isnan().all(dim=1).tolist() == [True, False]
    with pytest.raises(ProjectionError, match="dim must be the number of parameters 5, got 4"):
        projector.project(torch.ones(2, 5))
    with pytest.raises(ProjectionError, match="parameters 3 to 5 do not fit in dim 4"):
        projector.accumulator(1).add(torch.ones(1, 2), 3)


def test_spec_fixes_the_matrix_in_json() -> None:
    projector = Projector(256, seed=2**64 - 1, sparsity=4)
    expected = {"kind": "sjlt", "version": 1, "dim": 256, "seed": 2**64 - 1, "sparsity": 4}
    assert json.loads(json.dumps(projector.spec())) == expected
    assert projector.dim == 256


class FoldAccumulator(Accumulator):
    """Adds parameter d to output d mod k."""

    def __init__(self, rows: int, dim: int, device: torch.device | str) -> None:
        super().__init__(rows, dim, device)
        self.sums = torch.zeros(rows, dim)

    def _add(self, block: Tensor, offset: int, adam: AdamMoments | None) -> None:
        outputs = torch.arange(offset, offset + block.shape[1]) % self.dim
        self.sums.index_add_(1, outputs, block.float() if adam is None else adam_normalize(block, adam))

    def features(self) -> Tensor:
        return self.sums


class FoldProjection(ProjectionKind[ProjectionConfig]):
    name = "fold"
    version = 3
    Config = ProjectionConfig

    def accumulator(
        self, rows: int, *, device: torch.device | str = "cpu", exponents: Tensor | None = None
    ) -> FoldAccumulator:
        return FoldAccumulator(rows, self.config.dim, device)


def test_a_kind_of_another_package_needs_an_accumulator_only() -> None:
    kind, grads = FoldProjection(dim=4, seed=9), gradients(2, 10)
    padded = torch.cat([grads, torch.zeros(2, 2)], dim=1)
    torch.testing.assert_close(kind.project(grads), padded.reshape(2, 3, 4).sum(dim=1))
    torch.testing.assert_close(
        kind.project(grads, moments(10))[:, 3], adam_normalize(grads, moments(10))[:, 3::4].sum(1)
    )
    assert kind.spec() == {"kind": "fold", "version": 3, "dim": 4, "seed": 9}
    with pytest.raises(ProjectionError, match="moments of 9 parameters do not fit gradients of 10"):
        kind.project(grads, moments(9))


def test_the_slow_path_is_announced_once() -> None:
    with torch_only(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        native.announce.cache_clear()
        Projector(128).project(torch.ones(1, 4))
        Projector(128).project(torch.ones(1, 4))
    (announcement,) = caught
    assert announcement.category is RuntimeWarning
    assert "plain torch, about 10 times slower than the native kernel: DATAFLEX_NATIVE=0" in str(announcement.message)
