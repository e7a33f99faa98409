from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from dataflex.projection.kernels import sjlt


def matrix(start: int, stop: int, *, dim: int, sparsity: int, seed: int) -> Tensor:
    """Columns ``start`` to ``stop`` of sqrt(s) P, dense: ``(dim, n)`` float64."""
    dense = torch.zeros(dim, stop - start, dtype=torch.float64)
    columns = torch.arange(stop - start)
    for output, negative in sjlt.placements(start, stop, dim=dim, sparsity=sparsity, seed=seed):
        dense[output, columns] += 1 - 2 * negative.double()
    return dense


def test_lane_maps_are_permutations_that_treat_all_pairs_alike() -> None:
    assert len({tuple(row) for row in sjlt.POSITIONS}) == 15 * 16
    assert all(sorted(row) == list(range(16)) for row in sjlt.POSITIONS)
    for first, second in itertools.permutations(range(16), 2):
        assert len({(row[first], row[second]) for row in sjlt.POSITIONS}) == 16 * 15


@pytest.mark.parametrize(("dim", "sparsity"), [(128, 8), (48, 3), (16, 1), (320, 4)])
def test_each_column_has_one_entry_in_each_block_of_rows(dim: int, sparsity: int) -> None:
    dense = matrix(5, 700, dim=dim, sparsity=sparsity, seed=3)
    blocks = dense.abs().reshape(sparsity, dim // sparsity, -1)
    assert torch.equal(blocks.sum(dim=1), torch.ones(sparsity, 695, dtype=torch.float64))


def test_entries_depend_on_seed_and_parameter_index_alone() -> None:
    whole = matrix(0, 200, dim=256, sparsity=8, seed=2**63 + 17)
    pieces = [matrix(start, stop, dim=256, sparsity=8, seed=2**63 + 17) for start, stop in ((0, 7), (7, 33), (33, 200))]
    assert torch.equal(torch.cat(pieces, dim=1), whole)
    for other in (17, 2**63 + 18):
        assert not torch.equal(matrix(0, 200, dim=256, sparsity=8, seed=other), whole)


def test_parameter_indices_beyond_32_bits_have_their_own_columns() -> None:
    far = 16 << 32
    near_columns, far_columns = (matrix(start, start + 64, dim=256, sparsity=8, seed=0) for start in (0, far))
    assert not torch.equal(near_columns, far_columns)


def test_expected_product_of_columns_is_the_identity() -> None:
    seeds, count = 150, 40
    mean = torch.zeros(count, count, dtype=torch.float64)
    for seed in range(seeds):
        dense = matrix(0, count, dim=64, sparsity=4, seed=seed) / 2
        mean += dense.T @ dense / seeds
    # An off-diagonal entry of one draw has variance at most 1/k = 1/64.
    assert (mean - torch.eye(count, dtype=torch.float64)).abs().max() < 5 / math.sqrt(64 * seeds)


def chi_square(counts: Tensor) -> float:
    """Standard deviations by which counts miss the chi-square statistic of uniform ones."""
    expected, freedom = counts.double().mean(), counts.numel() - 1
    statistic = ((counts - expected).square() / expected).sum().item()
    return (statistic - freedom) / math.sqrt(2 * freedom)


def test_segments_positions_and_signs_are_uniform() -> None:
    groups = 4000
    for j, (output, negative) in enumerate(sjlt.placements(0, 16 * groups, dim=1024, sparsity=8, seed=1)):
        within = output.reshape(groups, 16) - 128 * j
        assert torch.equal(within // 16, (within[:, :1] // 16).expand(-1, 16))  # a group stays in one segment of 8
        assert chi_square(torch.bincount(within[:, 0] // 16, minlength=8)) < 5
        for lane in (0, 5, 15):
            assert chi_square(torch.bincount(within[:, lane] % 16, minlength=16)) < 5
        pairs = within[:, 3] % 16 * 16 + within[:, 11] % 16
        assert chi_square(torch.bincount(pairs, minlength=256).reshape(16, 16)[~torch.eye(16).bool()]) < 5
        assert negative.double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(16 * groups))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_inner_products_are_kept_as_well_as_by_a_dense_map(seed: int) -> None:
    dim, pairs, count = 1024, 60, 4000
    values = torch.randn(2 * pairs, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    values /= values.norm(dim=1, keepdim=True)
    projected = values @ matrix(0, count, dim=dim, sparsity=8, seed=seed).T / math.sqrt(8)
    norms = projected.square().sum(dim=1)
    errors = (projected[:pairs] * projected[pairs:]).sum(1) - (values[:pairs] * values[pairs:]).sum(1)
    assert norms.mean().item() == pytest.approx(1, abs=5 * math.sqrt(2 / dim / len(values)) + 0.01)
    assert errors.square().mean().sqrt().item() == pytest.approx(1 / math.sqrt(dim), rel=0.4)
