from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex.errors import SelectionError
from dataflex.retrieval.matrix import NearMatrix, load_matrix, sample_digests
from dataflex.testing import tiny_samples

SAMPLES = tiny_samples(6)


def matrix(entries: Any = ((0, 1, 2), (1, 3, 0))) -> NearMatrix:
    rows = np.array([sample.row for sample in SAMPLES])
    return NearMatrix(np.array(entries), rows, sample_digests(SAMPLES), {"candidates": {"source": "train.jsonl"}})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    matrix().save(tmp_path / "top_indices.npy")
    return tmp_path / "top_indices.npy"


def test_what_is_saved_is_read_again(path: Path) -> None:
    found = load_matrix(path)
    np.testing.assert_array_equal(found.neighbors, matrix().neighbors)
    np.testing.assert_array_equal(found.digests, matrix().digests)
    assert found.facts["candidates"] == {"source": "train.jsonl"}


def test_the_matrix_is_a_plain_array_of_int64(path: Path) -> None:
    plain = np.load(path, allow_pickle=False)
    assert (plain.shape, plain.dtype) == ((2, 3), np.int64)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "top_indices.json",
        "top_indices.npy",
        "top_indices.rows.npy",
    ]


def test_similarities_are_kept_sealed_and_may_be_missing(path: Path) -> None:
    assert load_matrix(path).similarities is None
    cosines = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.6]], dtype=np.float32)
    replace(matrix(), similarities=cosines).save(path)
    found = load_matrix(path).similarities
    assert found is not None
    np.testing.assert_array_equal(found, cosines)
    np.save(path.with_suffix(".similarities.npy"), cosines * 2)
    with pytest.raises(SelectionError, match=r"similarities\.npy is not the file that .*json describes"):
        load_matrix(path)
    matrix().save(path)
    assert load_matrix(path).similarities is None
    assert not path.with_suffix(".similarities.npy").exists()


def test_the_walk_takes_queries_in_the_order_that_is_asked_for() -> None:
    assert matrix([[4, 1, 2, 5], [3, 4, 1, 0]]).walk(np.array([1, 0])).tolist() == [3, 4, 1, 2, 0, 5]


def test_the_walk_goes_rank_by_rank_and_skips_repeats() -> None:
    assert matrix([[4, 1, 2, 5], [3, 4, 1, 0]]).walk().tolist() == [4, 3, 1, 2, 5, 0]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 3)), r"expected an int64 matrix of shape \(n_queries, max_K\), got float64\(2, 3\)"),
        (np.ones((2, 3), dtype=np.int32), r"got int32\(2, 3\)"),
        (np.ones(3, dtype=np.int64), r"got int64\(3,\)"),
        (np.ones((0, 3), dtype=np.int64), r"got int64\(0, 3\)"),
        (np.array([[0, -1]]), "row numbers start at 0, found -1"),
        (np.array([[0, "a"]], dtype=object), r"not a readable \.npy file: Object arrays"),
    ],
)
def test_an_array_that_is_no_matrix_is_refused(array: Any, message: str, path: Path) -> None:
    np.save(path, array, allow_pickle=True)
    with pytest.raises(SelectionError, match=message):
        load_matrix(path)


@pytest.mark.parametrize("cut", [0, 5, 40, -1])
def test_a_torn_matrix_is_an_error(cut: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SelectionError, match=r"top_indices\.npy is not a readable \.npy file"):
        load_matrix(path)


def test_bytes_behind_the_array_are_an_error(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(SelectionError, match="goes on behind its array"):
        load_matrix(path)


@pytest.mark.parametrize("name", ["top_indices.npy", "top_indices.rows.npy"])
def test_an_altered_array_does_not_fit_its_sidecar(name: str, path: Path) -> None:
    file = path.with_name(name)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(SelectionError, match=rf"(?s){name}.*(is not the file that|start at 0)"):
        load_matrix(path)


def test_row_numbers_of_no_candidate_are_an_error(tmp_path: Path) -> None:
    matrix([[0, 17]]).save(tmp_path / "m.npy")
    with pytest.raises(SelectionError, match="1 row numbers are no candidates, such as 17"):
        load_matrix(tmp_path / "m.npy")


def test_missing_files_are_named(path: Path) -> None:
    path.with_suffix(".json").unlink()
    with pytest.raises(SelectionError, match=r"top_indices\.json does not exist.*\n.*verify: false"):
        load_matrix(path)
    path.unlink()
    with pytest.raises(SelectionError, match=r"top_indices\.npy does not exist\n.*dataflex near"):
        load_matrix(path)


@pytest.mark.parametrize("text", ["torn", "[]", json.dumps({"format": 99})])
def test_a_damaged_or_foreign_sidecar_is_an_error(text: str, path: Path) -> None:
    path.with_suffix(".json").write_text(text)
    with pytest.raises(SelectionError, match=r"not readable JSON|no sidecar of a NEAR matrix"):
        load_matrix(path)


def test_a_bare_matrix_can_be_read_unchecked(path: Path) -> None:
    path.with_suffix(".json").unlink()
    assert len(load_matrix(path, verify=False).rows) == 0


def test_the_same_rows_fit_also_where_some_are_missing() -> None:
    matrix().check_samples(SAMPLES)
    matrix().check_samples(SAMPLES[2:5])


def test_other_rows_do_not_fit_and_the_first_are_named() -> None:
    others = [*SAMPLES[:4], *tiny_samples(6, seed=9)[4:]]
    with pytest.raises(SelectionError, match=r"2 of 6 samples differ from the 6 candidates of train\.jsonl.*row 4"):
        matrix().check_samples(others)
    with pytest.raises(SelectionError, match=r"2 of 8 samples differ"):
        matrix().check_samples(tiny_samples(8))
