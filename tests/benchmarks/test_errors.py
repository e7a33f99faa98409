from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from measuring import vectors
from measuring.errors import pair_errors, percentile, rms, summarise
from measuring.vectors import Vectors


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_an_isometry_has_no_error() -> None:
    values = torch.randn(5, 40, dtype=torch.float64, generator=generator())
    rotation, _ = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=generator()))
    drawn = Vectors(values)
    errors = pair_errors(values @ rotation, drawn.gram())
    assert errors.cosine.shape == errors.product.shape == (10,)
    assert errors.cosine.abs().max() < 1e-12
    assert errors.product.abs().max() < 1e-12


def test_scaled_features_keep_cosines_and_change_inner_products() -> None:
    drawn = Vectors(torch.randn(4, 30, generator=generator()))
    errors = pair_errors(2 * drawn.grads, drawn.gram())
    assert errors.cosine.abs().max() < 1e-6
    i, j = torch.triu_indices(4, 4, offset=1)
    torch.testing.assert_close(errors.product, 3 * vectors.cosines(drawn.gram())[i, j], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("draw", [vectors.gaussian, vectors.correlated])
def test_theory_is_what_a_normal_matrix_shows(draw: object) -> None:
    dim = 64
    rounds = []
    for seed in range(40):
        torch.manual_seed(seed)
        drawn = draw(12, 300, torch.Generator().manual_seed(seed))  # type: ignore[operator]
        features = drawn.grads.double() @ torch.randn(300, dim, dtype=torch.float64) / math.sqrt(dim)
        rounds.append(pair_errors(features, drawn.gram()))
    summary = summarise("vectors", "normal matrix", drawn, rounds, dim)
    assert abs(summary.cosine_rms - summary.cosine_theory) < 3 * summary.cosine_error + 0.02 * summary.cosine_theory
    assert abs(summary.product_rms - summary.product_theory) < 3 * summary.product_error + 0.02 / math.sqrt(dim)


def test_the_standard_error_is_that_of_rounds_not_of_pairs() -> None:
    # Pairs of a round that move together count once.
    together = torch.randn(50, 1, generator=generator(), dtype=torch.float64).expand(50, 1000)
    alone = torch.randn(50, 1000, generator=generator(), dtype=torch.float64)
    assert rms(together)[1] > 10 * rms(alone)[1]
    assert rms(torch.zeros(4, 3))[0] == 0


def test_a_verdict_needs_two_standard_errors() -> None:
    drawn = Vectors(torch.randn(4, 30, generator=generator()))
    errors = pair_errors(drawn.grads, drawn.gram())
    summary = summarise("vectors", "none", drawn, [errors, errors], 16)
    summary = replace(summary, cosine_rms=1.0, cosine_error=0.01)
    assert summary.within(1.05) is True
    assert summary.within(0.95) is False
    assert summary.within(1.01) is None


def test_the_percentile_is_of_all_rounds() -> None:
    values = torch.arange(10_000, dtype=torch.float64).view(10, 1000)
    assert percentile(values)[0] == 9989


def test_heavy_tails_have_the_kurtosis_that_is_asked_for() -> None:
    drawn = vectors.heavy_tails(2, 2**18, generator())
    assert drawn.kurtosis() == pytest.approx(vectors.KURTOSIS, rel=1e-3)
    assert not torch.equal(drawn.grads[0], drawn.grads[1])


def test_few_hot_vectors_are_few_hot_and_overlap() -> None:
    drawn = vectors.few_hot(40, 5000, generator())
    hot = (drawn.grads != 0).sum(dim=1)
    assert hot.max() == vectors.FEW
    assert hot.min() >= vectors.FEW - 2  # two places may coincide
    assert vectors.cosines(drawn.gram()).fill_diagonal_(0).abs().max() > 0.1


def test_correlated_vectors_have_a_cosine_of_one_half() -> None:
    cosines = vectors.cosines(vectors.correlated(6, 20_000, generator()).gram())
    off_diagonal = cosines[torch.triu_indices(6, 6, offset=1).unbind()]
    torch.testing.assert_close(off_diagonal, torch.full_like(off_diagonal, 0.5), rtol=0, atol=0.03)
