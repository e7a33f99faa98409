from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.errors import SelectionError, StoreError
from dataflex.retrieval.neighbors.exact import ExactIndex
from helpers.encoders import clustered_vectors, unit_vectors


def reference(vectors, queries, k):
    """Positions and cosines in float64, best first, ties by position."""
    cosines = queries.astype(np.float64) @ vectors.astype(np.float64).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(cosines, order, axis=1)


@given(
    n=st.integers(1, 60),
    q=st.integers(1, 9),
    share=st.floats(0, 1),
    blocks=st.tuples(st.integers(1, 12), st.integers(1, 70)),
    seed=st.integers(0, 1000),
)
def test_equals_the_float64_reference_for_any_block_size(n, q, share, blocks, seed):
    vectors, queries = unit_vectors(n, seed=seed), unit_vectors(q, seed=seed + 1)
    k = max(1, round(share * n))
    found = ExactIndex(vectors, query_rows=blocks[0], vector_rows=blocks[1]).search(queries, k)
    order, cosines = reference(vectors, queries, k)
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-6)
    np.testing.assert_array_equal(found.indices, order)
    assert found.indices.dtype == np.int64


@given(copies=st.integers(2, 30), k=st.integers(1, 8), vector_rows=st.integers(1, 40))
def test_equal_vectors_are_ranked_by_position(copies, k, vector_rows):
    # Entries are powers of two, so that every product is exact and equal vectors have equal cosines.
    kinds = np.array([[1, 0, 0, 0], [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1]], dtype=np.float32)
    vectors = kinds[np.random.default_rng(copies).integers(3, size=3 * copies + 8)]
    found = ExactIndex(vectors, vector_rows=vector_rows).search(kinds[:1], k)
    np.testing.assert_array_equal(found.indices, reference(vectors, kinds[:1], k)[0])


def test_a_larger_case_with_default_blocks():
    vectors, queries = clustered_vectors(20_000), clustered_vectors(50, seed=1)
    found = ExactIndex(vectors).search(queries, 300)
    order, cosines = reference(vectors, queries, 300)
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-6)
    # float32 may swap neighbours whose cosines differ in the 7th digit
    assert (found.indices == order).mean() > 0.99


@pytest.mark.parametrize("k", [0, 6])
def test_k_is_never_clipped(k):
    with pytest.raises(SelectionError, match=f"{k} neighbours were asked for, the index holds 5 vectors"):
        ExactIndex(unit_vectors(5)).search(unit_vectors(2), k)


def test_queries_of_another_dimension_are_refused():
    with pytest.raises(SelectionError, match=r"queries have shape \(2, 8\), the index holds vectors of dimension 16"):
        ExactIndex(unit_vectors(5)).search(unit_vectors(2, dim=8), 1)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (2 * unit_vectors(5), r"5 of 5 vectors are not of length 1, the first at 0 \(2\)"),
        (np.full((2, 3), np.nan, dtype=np.float32), "2 of 2 vectors are not of length 1"),
        (unit_vectors(5).astype(np.float64), r"expected float32 vectors of shape \(n, d\), got float64\(5, 16\)"),
        (np.empty((0, 4), dtype=np.float32), r"got float32\(0, 4\)"),
        (np.ones(4, dtype=np.float32), r"got float32\(4,\)"),
    ],
)
def test_vectors_that_are_no_unit_rows_are_refused(vectors, message):
    with pytest.raises(SelectionError, match=message):
        ExactIndex(vectors)


def test_an_index_is_saved_and_read_again(tmp_path: Path):
    index = ExactIndex(unit_vectors(30))
    index.save(tmp_path / "index.safetensors")
    loaded = ExactIndex.load(tmp_path / "index.safetensors")
    expected, found = (each.search(unit_vectors(4, seed=9), 7) for each in (index, loaded))
    np.testing.assert_array_equal(found.indices, expected.indices)


@pytest.mark.parametrize("content", [None, b"torn"])
def test_a_missing_or_damaged_file_is_an_error(content, tmp_path: Path):
    file = tmp_path / "index.safetensors"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StoreError, match=r"index\.safetensors holds no index"):
        ExactIndex.load(file)
