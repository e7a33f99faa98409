from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

import dataflex as df
from dataflex.errors import ConfigError, DataError, DataflexError
from dataflex.retrieval.embeddings.text import TextTemplate
from dataflex.retrieval.index import Groups, expand
from dataflex.retrieval.matrix import load_matrix
from dataflex.retrieval.neighbors.base import Neighbors
from helpers.encoders import WordEncoder
from helpers.near import near_index, rows
from helpers.rows import write_rows


def test_rows_and_order_are_those_of_a_plain_search(tmp_path: Path) -> None:
    candidates, queries = rows(10), rows(3, start=50)
    found = near_index(tmp_path, candidates, queries).build().neighbors

    def embedded(given: list[dict[str, str]]) -> np.ndarray:
        texts = [TextTemplate().render(sample) for sample in df.load_samples(given)]
        vectors = WordEncoder().encode(texts).astype(np.float64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    cosines = embedded(queries) @ embedded(candidates).T
    expected = -np.sort(-cosines, axis=1)[:, :6]
    np.testing.assert_allclose(np.take_along_axis(cosines, found, axis=1), expected, atol=1e-6)
    assert found.dtype == np.int64


def test_the_sidecar_says_what_the_matrix_was_made_from(tmp_path: Path) -> None:
    candidates, queries = write_rows(tmp_path / "c.jsonl", rows(10)), write_rows(tmp_path / "q.jsonl", rows(1, 50))
    near_index(tmp_path, candidates, queries, text_template="{{ prompt }}").build()
    facts = json.loads((tmp_path / "near.json").read_text())
    assert facts["encoder"] == {"name": "words", **WordEncoder().identity(), "dim": 64}
    assert (facts["metric"], facts["max_K"], facts["index"]) == ("cosine", 6, {"kind": "exact"})
    assert (facts["candidates"]["source"], facts["candidates"]["rows"]) == (str(candidates), 30)
    assert (facts["queries"]["rows"], facts["text"]["template"]) == (3, "{{ prompt }}")
    loaded = load_matrix(tmp_path / "near.npy")
    loaded.check_samples(df.load_samples(str(candidates)))


def test_a_name_in_dataset_info_and_its_drawn_rows_keep_their_row_numbers(tmp_path: Path) -> None:
    write_rows(tmp_path / "c.jsonl", rows(10))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"some": {"file_name": "c.jsonl", "num_samples": 12}}))
    matrix = near_index(tmp_path, "some", dataset_dir=str(tmp_path)).build()
    assert len(matrix.rows) == 12
    assert matrix.rows.max() > 12
    matrix.check_samples(df.load_samples("some", dataset_dir=tmp_path))


def test_a_second_run_embeds_nothing(tmp_path: Path) -> None:
    near_index(tmp_path).build()
    encoder = WordEncoder()
    near_index(tmp_path, encoder=encoder, max_K=3).build()
    assert encoder.calls == []


def test_queries_may_have_a_text_of_their_own(tmp_path: Path) -> None:
    encoder = WordEncoder()
    near_index(tmp_path, encoder=encoder, query_template="find: {{ prompt }}").build()
    assert [call[0].startswith("find: ") for call in encoder.calls] == [False, True]


class TestDuplicates:
    candidates = (*rows(2), rows(1)[0], rows(1)[0])  # rows 6 and 7 repeat row 0

    def test_each_follows_its_original_in_the_order_of_rows(self, tmp_path: Path, caplog) -> None:
        with caplog.at_level(logging.WARNING):
            matrix = near_index(tmp_path, self.candidates, rows(1)[:1], max_K=4).build()
        assert matrix.neighbors.tolist()[0][:3] == [0, 6, 7]
        assert "2 rows (row numbers 6, 7) repeat the text of another candidate" in caplog.text

    def test_or_only_the_first_takes_part(self, tmp_path: Path) -> None:
        matrix = near_index(tmp_path, self.candidates, rows(1)[:1], max_K=6, duplicates="drop").build()
        assert sorted(matrix.neighbors[0].tolist()) == [0, 1, 2, 3, 4, 5]
        assert matrix.facts["candidates"]["duplicates"] == [6, 7]
        with pytest.raises(ConfigError, match=r"there are 6 candidates \(2 duplicates left out\)"):
            near_index(tmp_path, self.candidates, rows(1)[:1], max_K=7, duplicates="drop").build()


def test_groups_are_expanded_row_by_row_and_cut() -> None:
    groups = Groups(np.array([5, 0, 3, 9, 1]), np.array([0, 1, 4]), np.array([1, 3, 1]))
    cosines = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.6]], dtype=np.float32)
    rows, similarities = expand(Neighbors(np.array([[1, 2, 0], [2, 0, 1]]), cosines), groups, 4)
    assert rows.tolist() == [[0, 3, 9, 1], [1, 5, 0, 3]]
    for row, numbers in enumerate(rows.tolist()):
        groups_of = [next(g for g in range(3) if number in group_rows(groups, g)) for number in numbers]
        places = [[1, 2, 0], [2, 0, 1]][row]
        assert similarities[row].tolist() == [cosines[row][places.index(group)] for group in groups_of]


def group_rows(groups, number):
    return groups.rows[groups.start[number] : groups.start[number] + groups.size[number]].tolist()


def test_max_k_beyond_the_candidates_is_an_error_before_any_work(tmp_path: Path) -> None:
    encoder = WordEncoder()
    with pytest.raises(ConfigError, match=r"max_K: 31 neighbours .*there are 30 candidates\n  hint: max_K: 30 or less"):
        near_index(tmp_path, encoder=encoder, max_K=31).build()
    assert encoder.calls == []
    assert list(tmp_path.iterdir()) == []


def test_candidates_without_text_are_left_out_and_said_so(tmp_path: Path, caplog) -> None:
    candidates = [{"instruction": " ", "output": ""}, *rows(2), {"instruction": "", "output": "\n"}]
    with caplog.at_level(logging.WARNING):
        matrix = near_index(tmp_path, candidates).build()
    assert "2 rows (row numbers 0, 7) have no text and are left out" in caplog.text
    assert sorted(set(matrix.neighbors.ravel().tolist())) == [1, 2, 3, 4, 5, 6]
    assert matrix.facts["candidates"]["empty"] == [0, 7]
    with pytest.raises(ConfigError, match=r"there are 6 candidates \(2 empty left out\)"):
        near_index(tmp_path, candidates, max_K=7).build()


def test_queries_without_text_are_an_error_that_names_them(tmp_path: Path) -> None:
    queries = [*rows(1), {"instruction": "", "output": ""}]
    with pytest.raises(DataError, match=r"1 rows \(row numbers 3\) of the queries have no text"):
        near_index(tmp_path, queries=queries).build()


def test_a_missing_model_is_an_error_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra near")
    for model, message in (("./nowhere", "'./nowhere' does not exist"), ("no/where", "embedding model 'no/where'")):
        with pytest.raises(DataflexError, match=message):
            near_index(tmp_path, encoder=None, embed_model=model, embed_method="sentence-transformer").build()
    assert not (tmp_path / "near.npy").exists()


def test_a_folder_cannot_be_the_matrix(tmp_path: Path) -> None:
    (tmp_path / "near.npy").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        near_index(tmp_path).build()


def test_wrong_parameters_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        near_index(tmp_path, max_K=0, min_recall=2, index="tree", no_such_key=1)
    assert len(caught.value.problems) == 4


def test_hnsw_is_measured_and_kept(tmp_path: Path) -> None:
    pytest.importorskip("hnswlib", reason="needs the extra near")
    near_index(tmp_path, rows(100), rows(20, start=200), index="hnsw", min_recall=0.9, hnsw_m=8).build()
    facts = json.loads((tmp_path / "near.json").read_text())["index"]
    assert facts["kind"] == "hnsw"
    assert facts["recall_check"]["recall"] >= 0.9
    assert len(list((tmp_path / "near_cache" / "index").glob("*.hnsw"))) == 1
