"""Features keep inner products and norms, as accurately as is promised."""

from __future__ import annotations

import math

import pytest
import torch

from dataflex.projection.adam import AdamMoments, AdamVariant, adam_normalize
from dataflex.projection.kernels import rademacher
from dataflex.projection.projector import Projector
from helpers.projections import VARIANTS, adam_for, exact, gradients

# Accuracy


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_are_the_projection_in_float64(backend: str, variant: AdamVariant | None) -> None:
    grads, adam, projector = gradients(3, 20000), adam_for(20000, variant), Projector(1024, seed=5)
    expected = exact(projector, grads, adam)
    error = (projector.project(grads, adam) - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-5


def test_norms_are_kept_on_average(backend: str) -> None:
    grads = torch.randn(40, 3000, generator=torch.Generator().manual_seed(0))
    ratio = Projector(1024).project(grads).norm(dim=1) / grads.norm(dim=1)
    assert ratio.square().mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / 1024 / 40))


def test_rows_of_zeros_and_no_rows_and_no_columns(backend: str) -> None:
    projector = Projector(128)
    assert torch.equal(projector.project(torch.zeros(2, 50)), torch.zeros(2, 128))
    assert projector.project(torch.zeros(0, 50)).shape == (0, 128)
    assert torch.equal(projector.project(torch.zeros(2, 0)), torch.zeros(2, 128))
    assert torch.equal(projector.accumulator(2).features(), torch.zeros(2, 128))


@pytest.mark.parametrize("scale", [1e-37, 1e-34, 5e-32, 1e-30, 1e30])
def test_extreme_scales_of_raw_gradients(backend: str, scale: float) -> None:
    grads, projector = gradients(1, 500).abs().clamp(1e-3, 1) * scale, Projector(256)
    expected = exact(projector, grads, None)
    error = (projector.project(grads).double() - expected).norm() / expected.norm()
    assert error < (1e-5 if scale >= 2.0**-104 else 1e-3 if scale > 1e-35 else 1e-1)  # the grid ends at 2^-104


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("kind", ["sjlt", "rademacher"])
def test_a_second_beta_close_to_one_costs_no_accuracy(backend: str, kind: str, steps: int) -> None:
    """The limit of the bound is 2294 for 0.99999999; a grid for that had an error of 5e-4 (sjlt) and 0.1."""
    generator = torch.Generator().manual_seed(steps)
    betas = (0.9, 1 - 1e-8)
    mean = square = torch.zeros(5000)
    for _ in range(steps):
        gradient = torch.randn(5000, generator=generator)
        mean, square = 0.9 * mean + 0.1 * gradient, betas[1] * square + 1e-8 * gradient**2
    adam = AdamMoments(mean, square, steps, betas, 1e-8)
    grads = torch.randn(2, 5000, generator=generator)
    projector = Projector(256, kind=kind)
    matrix = 1 - 2 * rademacher.negative_signs(0, 5000, dim=256, seed=0).double()  # (k, p)
    dense = adam_normalize(grads, adam).double() @ matrix.T / 16
    expected = exact(projector, grads, adam) if kind == "sjlt" else dense
    error = (projector.project(grads, adam).double() - expected).norm() / expected.norm()
    assert error < (1e-5 if kind == "sjlt" else 5e-4)


# What TRAK's own tests expect of a projector (docs/kernels.md)


@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian"])
def test_how_many_outputs_a_single_entry_reaches(kind: str) -> None:
    grads = torch.zeros(6, 10_001)
    grads[range(6), [0, 1, 17, 5000, 9999, 10_000]] = torch.tensor([1.0, -3.0, 0.25, 1.0, 2.0, 1.0])
    features = Projector(2048, kind=kind).project(grads)
    assert (features != 0).sum(dim=1).tolist() == [8 if kind == "sjlt" else 2048] * 6
    norms = grads.norm(dim=1)
    tolerance = 0.15 if kind == "gaussian" else 1e-4
    assert ((features.norm(dim=1) - norms).abs() <= tolerance * norms).all()


@pytest.mark.parametrize("count", [10_240, 10_241])
def test_sums_of_signs_have_the_parity_of_their_number(count: int) -> None:
    grads = torch.ones(1, count)
    dense = Projector(1024, kind="rademacher").project(grads) * 1024**0.5
    assert (dense.round() % 2 == count % 2).all()
    sparse = Projector(1024).project(grads) * 8**0.5
    assert set((sparse.round() % 2).flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian"])
def test_norms_products_and_right_angles_are_kept(kind: str) -> None:
    rows = torch.rand(16, 10_001, generator=torch.Generator().manual_seed(3)) * 18 - 9
    rows[-1] -= rows[0] @ rows[-1] / rows[0].square().sum() * rows[0]
    features = Projector(2048, kind=kind).project(rows).double()
    cosines = torch.nn.functional.cosine_similarity
    errors = cosines(features[:, None], features[None], dim=2) - cosines(rows[:, None], rows[None], dim=2)
    assert errors.abs().max() < 5 / 2048**0.5
    apart, kept = torch.pdist(rows.double()), torch.pdist(features)
    assert ((kept - apart).abs() < 5 / 4096**0.5 * apart).all()
