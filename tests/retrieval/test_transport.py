"""TSDS's formulas: cases worked out by hand, a plain transcription of the algorithm, and its properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataflex.errors import SelectionError
from dataflex.retrieval import transport as module
from dataflex.retrieval.transport import densities, distances, transport
from dataflex.testing.ranks import run_ranks
from dataflex.utils.distributed import Ranks
from helpers.encoders import unit_vectors


def test_distances_of_unit_vectors() -> None:
    vectors = unit_vectors(6)
    cosines = (vectors @ vectors.T).astype(np.float32)
    plain = np.linalg.norm(vectors[:, None].astype(np.float64) - vectors[None], axis=2)
    np.testing.assert_allclose(distances(cosines), plain, atol=2e-3)  # sqrt of float32 rounding on the diagonal


def test_density_counts_near_duplicates_by_the_kernel() -> None:
    # On the unit circle: angles 0, 0 and 60 degrees (distance 1), and 180 degrees (distance 2).
    angles = np.deg2rad([0, 0, 60, 180])
    vectors = torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))
    # sigma 2: K(1) = 1 - 1/4, K(2) = 0, and 60 to 180 degrees is sqrt(3): 1 - 3/4.
    np.testing.assert_allclose(densities(vectors, 4, sigma=2.0), [2.75, 2.75, 1 + 2 * 0.75 + 0.25, 1.25], atol=1e-5)
    np.testing.assert_allclose(densities(vectors, 2, sigma=2.0), [2, 2, 1.75, 1.25], atol=1e-5)  # the nearest two only
    np.testing.assert_allclose(densities(vectors, 9, sigma=0.5), [2, 2, 1, 1], atol=1e-5)
    assert densities(vectors, 4, sigma=0).tolist() == [1, 1, 1, 1]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that there are many."""
    monkeypatch.setattr(module, "HELD_VALUES", 64)
    monkeypatch.setattr(module, "COLUMNS", 5)


@pytest.mark.usefixtures("small_blocks")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.integers(1, 30), dim=st.integers(1, 6), kde_k=st.integers(1, 40), sigma=st.floats(0.1, 3), seed=st.integers(0)
)
def test_densities_in_blocks_equal_the_naive_ones(n, dim, kde_k, sigma, seed) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    vectors[n // 2] = vectors[0]  # an exact twin
    squared = np.square(vectors[:, None].astype(np.float64) - vectors[None]).sum(axis=2)
    kernel = np.maximum(0, 1 - squared / sigma**2)
    expected = -np.sort(-kernel, axis=1)[:, :kde_k].sum(axis=1)
    # float32 rounds a squared distance by 1e-6 or so, and the kernel divides it by sigma^2
    found = densities(torch.from_numpy(vectors), kde_k, sigma)
    np.testing.assert_allclose(found, expected, atol=2e-6 * min(kde_k, n) / sigma**2 + 1e-9)


@pytest.mark.usefixtures("small_blocks")
def test_the_number_of_ranks_changes_no_bit_of_a_density() -> None:
    vectors = torch.from_numpy(unit_vectors(41).astype(np.float32))
    expected = densities(vectors, 7, 1.2)

    def work(ranks: Ranks) -> list[float]:
        found: list[float] = densities(vectors, 7, 1.2, ranks).tolist()
        return found

    for found in run_ranks(3, work):
        assert found == expected.tolist()


class TestByHand:
    """Two queries, four candidates: query 0 lists 0, 1, 2, 3 and query 1 lists 3, 2, 1, 0."""

    neighbors = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    lengths = np.array([[0.1, 0.3, 0.6, 1.0], [0.2, 0.3, 0.5, 0.9]])

    def transported(self, density, alpha, scale=1.0):
        return transport(self.neighbors, self.lengths, np.array(density, dtype=float), 4, alpha=alpha, scale=scale)

    def test_density_one(self) -> None:
        # Steps (s: query -> next neighbour), cost of the step being d_next * s - sum of d so far:
        #   s = 1: query 0 -> 1: 0.3 - 0.1 = 0.2; query 1 -> 2: 0.3 - 0.2 = 0.1; total 0.3
        #   s = 2: query 0 -> 2: 0.6 * 2 - 0.4 = 0.8, total 0.9; query 1 -> 1: 0.5 * 2 - 0.5 = 0.5, total 1.3
        # It stops at alpha * total >= (1 - alpha) * 2. With alpha = 2/3 the limit is total = 1: query 0 has its two
        # nearest full (s = 2, each 1/4), query 1 stops with its first full (1/4); its second takes the rest (1/4).
        found = self.transported(np.ones((2, 4)), alpha=2 / 3)
        assert (found.spread, found.stopped) == (2, True)
        np.testing.assert_allclose(found.probabilities, [1 / 4, 1 / 4, 1 / 4, 1 / 4])
        assert found.used.tolist() == [2, 2]

    def test_near_duplicates_share(self) -> None:
        # Candidates 0 and 1 are duplicates (density 2), 2 and 3 are alone. Shares are 1/2, 1/2, 1, 1.
        #   s = 0.5: query 0 -> 1: 0.3 * 0.5 - 0.05 = 0.1
        #   s = 1: query 0 -> 2: 0.6 * 1 - (0.05 + 0.15) = 0.4; total 0.4; query 1 -> 2: 0.3 - 0.2 = 0.1; total 0.5
        #   s = 2: query 0 -> 3: 1.0 * 2 - (0.2 + 0.6) = 1.2; total 1.3
        # alpha = 2/3 stops there. Query 0: 1/2 * 1/2 * 1/2 = 1/8 each on 0 and 1, the rest 1/4 on 2; query 1: 1/4 on 3
        # and the rest 1/4 on 2.
        found = self.transported([[2, 2, 1, 1], [1, 1, 2, 2]], alpha=2 / 3)
        assert (found.spread, found.stopped) == (2, True)
        np.testing.assert_allclose(found.probabilities, [1 / 8, 1 / 8, 1 / 2, 1 / 4])

    def test_without_a_cost_the_neighbours_are_used_up(self) -> None:
        # s grows to 3: three neighbours full with 1/6 each, nothing is left for the fourth.
        found = self.transported(np.ones((2, 4)), alpha=0.0)
        assert (found.spread, found.stopped) == (3, False)
        np.testing.assert_allclose(found.probabilities, np.array([1, 2, 2, 1]) / 6)

    def test_cost_alone_keeps_the_nearest(self) -> None:
        found = self.transported(np.ones((2, 4)), alpha=1.0)
        np.testing.assert_allclose(found.probabilities, [1 / 2, 0, 0, 1 / 2])

    def test_a_first_neighbour_takes_no_more_than_the_query_has(self) -> None:
        # It stops at s = 1/2, where query 1's first neighbour alone could take 1 / (2 * 1/2) = 1 of a mass of 1/2.
        found = self.transported([[2, 2, 1, 1], [1, 1, 2, 2]], alpha=1.0)
        assert found.spread == 0.5
        np.testing.assert_allclose(found.probabilities, [1 / 2, 0, 0, 1 / 2])

    def test_the_scale_divides_the_cost(self) -> None:
        # At scale 2 the limit is total = 2, so s = 2 (total 1.3) goes by and s = 3 stops: query 0 -> 3 costs
        # 1.0 * 3 - (0.1 + 0.3 + 0.6) = 2.0, total 2.5. Both have two neighbours full (1/6 each) and a rest of 1/6.
        found = self.transported(np.ones((2, 4)), alpha=2 / 3, scale=2.0)
        assert (found.spread, found.stopped) == (3, True)
        np.testing.assert_allclose(found.probabilities, np.array([1, 2, 2, 1]) / 6)


def plain_transport(neighbors, lengths, density, n, alpha, scale):
    """The greedy loop step by step: always the query whose list is filled up first."""
    q, width = neighbors.shape
    head, last = [0] * q, [0] * q
    level = [1 / density[j][0] for j in range(q)]
    cost = [0.0] * q
    spread = 0.0
    while any(k is not None for k in head):
        j = min((j for j in range(q) if head[j] is not None), key=lambda j: (level[j], head[j], j))
        k = head[j]
        spread = level[j]
        cost[j] = sum((lengths[j][k + 1] - lengths[j][i]) / density[j][i] for i in range(k + 1))
        if alpha / scale * sum(cost) >= (1 - alpha) * q:
            break
        last[j] = k
        head[j] = k + 1 if k < width - 2 else None
        level[j] += 1 / density[j][k + 1]
    result = np.zeros(n)
    for j in range(q):
        left = 1 / q
        for k in range(last[j] + 1):
            taken = min(left, 1 / (q * spread * density[j][k]))
            result[neighbors[j][k]] += taken
            left -= taken
        result[neighbors[j][last[j] + 1]] += left
    return result


@given(
    q=st.integers(1, 6),
    width=st.integers(2, 7),
    alpha=st.floats(0.05, 0.95),
    scale=st.floats(0.2, 5),
    seed=st.integers(0, 10_000),
)
def test_equals_the_plain_loop_and_is_a_distribution(q, width, alpha, scale, seed) -> None:
    stream = np.random.default_rng(seed)
    n = width + 3
    neighbors = np.stack([stream.permutation(n)[:width] for _ in range(q)])
    lengths = np.sort(stream.uniform(0, 1.4, (q, width)), axis=1)
    density = stream.uniform(1, 4, n)[neighbors]
    found = transport(neighbors, lengths, density, n, alpha=alpha, scale=scale)
    np.testing.assert_allclose(
        found.probabilities, plain_transport(neighbors, lengths, density, n, alpha, scale), atol=1e-9
    )
    assert found.probabilities.sum() == pytest.approx(1)
    assert (found.probabilities >= 0).all()


def test_one_neighbour_is_not_enough() -> None:
    with pytest.raises(SelectionError, match="at least 2 neighbours of each query, got 1"):
        transport(np.zeros((1, 1), dtype=np.int64), np.zeros((1, 1)), np.ones((1, 1)), 3, alpha=0.5, scale=1.0)
