from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataflex.errors import SelectionError, StoreError
from dataflex.retrieval.neighbors.base import Neighbors
from dataflex.retrieval.neighbors.exact import ExactIndex
from dataflex.retrieval.neighbors.hnsw import HnswIndex, recalls
from helpers.encoders import clustered_vectors, unit_vectors

pytest.importorskip("hnswlib", reason="needs the extra near")

K = 10


def exact_neighbors(vectors, queries):
    return ExactIndex(vectors).search(queries, K)


@pytest.mark.parametrize("make", [clustered_vectors, unit_vectors])
def test_ef_is_raised_until_the_recall_is_reached(make):
    vectors, queries = make(5000, 48), make(300, 48, seed=1)
    index = HnswIndex(vectors, m=16, ef_construction=100, threads=1)
    check = index.tune(queries[:100], exact_neighbors(vectors, queries[:100]), 0.99, population=300)
    assert check.recall - 2 * check.error >= 0.99
    assert [ef for ef, _ in check.tried] == sorted({ef for ef, _ in check.tried})
    found = index.search(queries, K)
    assert recalls(found, exact_neighbors(vectors, queries)).mean() >= 0.99 - check.error
    np.testing.assert_allclose(found.similarities, np.einsum("qd,qkd->qk", queries, vectors[found.indices]), atol=1e-5)
    assert (np.diff(found.similarities, axis=1) <= 0).all()


def test_random_vectors_need_a_broader_search_than_clustered_ones():
    efs = {}
    for make in (clustered_vectors, unit_vectors):
        vectors, queries = make(5000, 48), make(100, 48, seed=1)
        index = HnswIndex(vectors, m=8, ef_construction=50, threads=1)
        efs[make] = index.tune(queries, exact_neighbors(vectors, queries), 0.99).ef
    assert efs[unit_vectors] > efs[clustered_vectors]


def test_a_graph_that_is_too_thin_says_what_it_reaches():
    vectors, queries = unit_vectors(2000, 64), unit_vectors(50, 64, seed=1)
    index = HnswIndex(vectors, m=2, ef_construction=2, threads=1)
    check = index.tune(queries, exact_neighbors(vectors, queries), 1.0)
    assert check.ef == 1000  # half of the vectors
    assert not check.reaches(1.0)
    assert 0 < check.recall < 1


def test_one_thread_and_one_seed_give_one_graph():
    vectors, queries = unit_vectors(500), unit_vectors(20, seed=1)
    first, second = (HnswIndex(vectors, threads=1).search(queries, K) for _ in range(2))
    np.testing.assert_array_equal(first.indices, second.indices)


def test_a_sample_has_an_error_and_a_census_has_none():
    vectors, queries = unit_vectors(1000, 48), unit_vectors(40, 48, seed=1)
    index = HnswIndex(vectors, m=4, ef_construction=10, threads=1)
    truth = exact_neighbors(vectors, queries)
    assert index.tune(queries, truth, 0.01).error == 0
    assert index.tune(queries, truth, 0.01, population=1000).error > 0
    assert index.tune(queries[:1], exact_neighbors(vectors, queries[:1]), 0.01, population=1000).error == 1


def test_recall_counts_what_is_as_near_as_the_exact_neighbours():
    places = np.zeros((2, 3), dtype=np.int64)
    exact = Neighbors(places, np.array([[0.9, 0.8, 0.7], [0.9, 0.8, 0.8]], dtype=np.float32))
    found = Neighbors(places + 1, np.array([[0.9, 0.7, 0.7], [0.9, 0.7, 0.6]], dtype=np.float32))
    assert recalls(found, exact).tolist() == pytest.approx([1, 1 / 3])


class TestFile:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        HnswIndex(unit_vectors(200), threads=1).save(tmp_path / "it.hnsw")
        return tmp_path / "it.hnsw"

    def test_a_graph_is_saved_and_read_again(self, saved: Path):
        vectors, queries = unit_vectors(200), unit_vectors(20, seed=1)
        loaded = HnswIndex.load(saved, vectors, threads=1)
        expected = HnswIndex(vectors, threads=1).search(queries, K)
        np.testing.assert_array_equal(loaded.search(queries, K).indices, expected.indices)

    @pytest.mark.parametrize("change", [{"m": 8}, {"seed": 1}, {"ef_construction": 9}])
    def test_other_settings_are_another_graph(self, change: dict[str, int], saved: Path):
        with pytest.raises(StoreError, match="index of other vectors or settings"):
            HnswIndex.load(saved, unit_vectors(200), **change)

    def test_other_vectors_are_another_graph(self, saved: Path):
        with pytest.raises(StoreError, match="index of other vectors or settings"):
            HnswIndex.load(saved, unit_vectors(200, seed=5))

    def test_altered_bytes_never_reach_the_library(self, saved: Path):
        data = bytearray(saved.read_bytes())
        data[len(data) // 2] ^= 0xFF
        saved.write_bytes(bytes(data))
        with pytest.raises(StoreError, match="missing or damaged"):
            HnswIndex.load(saved, unit_vectors(200))

    def test_a_missing_graph_or_sidecar_is_an_error(self, saved: Path):
        sidecar = saved.with_name("it.hnsw.json")
        assert json.loads(sidecar.read_text())["size"] == 200
        saved.unlink()
        with pytest.raises(StoreError, match="missing or damaged"):
            HnswIndex.load(saved, unit_vectors(200))
        sidecar.write_text("torn")
        with pytest.raises(StoreError, match="missing or damaged"):
            HnswIndex.load(saved, unit_vectors(200))


def test_k_is_never_clipped():
    with pytest.raises(SelectionError, match="9 neighbours were asked for, the index holds 5 vectors"):
        HnswIndex(unit_vectors(5)).search(unit_vectors(2), 9)
