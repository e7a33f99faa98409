from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex.errors import SelectionError
from dataflex.retrieval.neighbors import choose
from dataflex.retrieval.neighbors.base import NeighborIndex
from dataflex.retrieval.neighbors.choose import IndexSettings, choose_index
from dataflex.retrieval.neighbors.exact import ExactIndex
from helpers.encoders import clustered_vectors, unit_vectors

needs_hnswlib = pytest.mark.skipif(importlib.util.find_spec("hnswlib") is None, reason="needs the extra near")
K = 5


@pytest.fixture
def vectors() -> np.ndarray:
    return clustered_vectors(2000, 32)


@pytest.fixture
def queries() -> np.ndarray:
    return clustered_vectors(60, 32, seed=1)


@pytest.fixture
def graphs_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "GRAPH_QUERIES", 50)
    monkeypatch.setattr(choose, "GRAPH_VECTORS", 1000)


@pytest.fixture
def graphs_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searching a graph takes no time, brute force a second; what is found is real."""

    def timed(index: NeighborIndex, queries: Any, k: int) -> tuple[Any, float]:
        return index.search(queries, k), float(isinstance(index, ExactIndex))

    monkeypatch.setattr(choose, "_timed", timed)


def test_auto_is_exact_for_few_queries(vectors, queries, caplog):
    assert choose_index(vectors, queries, K, IndexSettings()).kind == "exact"


@needs_hnswlib
@pytest.mark.usefixtures("graphs_pay", "graphs_are_quick")
def test_auto_builds_a_graph_where_it_pays_and_keeps_it(vectors, queries, tmp_path: Path, monkeypatch):
    path = tmp_path / "index" / "it.hnsw"
    index = choose_index(vectors, queries, K, IndexSettings(m=16), path=path)
    assert index.describe()["recall_check"]["recall"] >= 0.99
    assert path.is_file()

    monkeypatch.setattr(choose, "GRAPH_QUERIES", 10**9)  # the kept graph costs nothing any more
    monkeypatch.setattr(choose.HnswIndex, "__init__", lambda *args, **kwargs: pytest.fail("built again"))
    assert choose_index(vectors, queries, K, IndexSettings(m=16), path=path).kind == "hnsw"


@needs_hnswlib
@pytest.mark.usefixtures("graphs_pay", "graphs_are_quick")
def test_a_damaged_graph_is_built_again_and_said_so(vectors, queries, tmp_path: Path, caplog):
    path = tmp_path / "it.hnsw"
    choose_index(vectors, queries, K, IndexSettings(m=16), path=path)
    path.write_bytes(b"torn")
    with caplog.at_level(logging.WARNING):
        assert choose_index(vectors, queries, K, IndexSettings(m=16), path=path).kind == "hnsw"
    assert "it.hnsw is missing or damaged; building it again" in caplog.text


@needs_hnswlib
@pytest.mark.usefixtures("graphs_pay", "graphs_are_quick")
def test_auto_goes_back_to_exact_if_the_recall_is_not_reached(caplog):
    vectors, queries = unit_vectors(1500, 64), unit_vectors(60, 64, seed=1)
    settings = IndexSettings(m=2, ef_construction=2, min_recall=1.0)
    with caplog.at_level(logging.WARNING):
        index = choose_index(vectors, queries, K, settings)
    assert index.kind == "exact"
    assert "hnsw does not reach recall 1.0 (ef 16: " in caplog.text


@needs_hnswlib
@pytest.mark.usefixtures("graphs_pay")
def test_auto_goes_back_to_exact_if_that_is_quicker(vectors, queries, monkeypatch, caplog):
    monkeypatch.setattr(choose, "_timed", lambda index, queries, k: (index.search(queries, k), 1.0))
    with caplog.at_level(logging.INFO):
        assert choose_index(vectors, queries, K, IndexSettings(m=16)).kind == "exact"
    assert "searching exactly" in caplog.text


@needs_hnswlib
def test_hnsw_that_was_asked_for_and_falls_short_is_an_error():
    vectors, queries = unit_vectors(1500, 64), unit_vectors(60, 64, seed=1)
    settings = IndexSettings("hnsw", m=2, ef_construction=2, min_recall=1.0)
    with pytest.raises(
        SelectionError, match=r"does not reach min_recall 1\.0 for 5 neighbours \(ef 16: 0\.\d+.*\n.*exact"
    ):
        choose_index(vectors, queries, K, settings)


@needs_hnswlib
def test_hnsw_that_was_asked_for_is_used_for_few_queries_too(vectors, queries):
    assert choose_index(vectors, queries, K, IndexSettings("hnsw", m=16)).kind == "hnsw"


def test_hnsw_without_its_package_names_the_extra(vectors, queries, monkeypatch):
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    with pytest.raises(SelectionError, match=r'needs hnswlib.*\n.*pip install "dataflex-sdk\[near\]"'):
        choose_index(vectors, queries, K, IndexSettings("hnsw"))


@pytest.mark.usefixtures("graphs_pay")
def test_auto_without_the_package_is_exact_and_says_so(vectors, queries, monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO):
        assert choose_index(vectors, queries, K, IndexSettings()).kind == "exact"
    assert "hnswlib is not installed (extra near)" in caplog.text
