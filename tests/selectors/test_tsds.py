from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataflex.data import ChatTemplate, load_samples, tokenize
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import ConfigError, DataError, ModelError, SelectionError
from dataflex.retrieval.transport import densities, distances, transport
from dataflex.selectors.tsds import TsdsSelector, nearest_others
from dataflex.testing import tiny_context, tiny_tokenizer
from helpers.encoders import WordEncoder
from helpers.near import rows


def dataset(made: list[dict[str, Any]]) -> TokenizedDataset:
    template = ChatTemplate.load("chatml", tiny_tokenizer())
    return tokenize(load_samples(made), template, 256, progress=False, keep_unlabelled=True)


def context(tmp_path: Path, **changes: Any) -> Any:
    """30 candidates of three families, 4 targets of the family ``sum``."""
    targets = [row for row in rows(4, start=50) if row["task"] == "sum"]
    defaults = {"train_dataset": dataset(rows(10)), "eval_dataset": dataset(targets), "num_samples": 5}
    return tiny_context(tmp_path, **(defaults | changes))


def tsds(**params: Any) -> TsdsSelector:
    return TsdsSelector(**({"encoder": WordEncoder(), "max_K": 12, "kde_K": 10, "alpha": 0.5, "C": 0.2} | params))


def test_probabilities_are_those_of_the_formulas(tmp_path: Path) -> None:
    given = context(tmp_path)
    selection = tsds().select(given)

    def embedded(samples: Any) -> np.ndarray:
        texts = ["\n".join(message["content"] for message in sample.messages) for sample in samples]
        vectors = WordEncoder().encode(texts).astype(np.float64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    vectors, queries = embedded(given.train_dataset.samples), embedded(given.eval_dataset.samples)
    cosines = queries @ vectors.T
    neighbors = np.argsort(-np.round(cosines, 6), axis=1, kind="stable")[:, :12]
    retrieved = np.unique(neighbors)
    density = np.zeros(len(vectors))
    density[retrieved] = densities(torch.from_numpy(vectors[retrieved].astype(np.float32)), 10, 0.75)
    lengths = distances(np.take_along_axis(cosines, neighbors, axis=1).astype(np.float32))
    expected = transport(neighbors, lengths, density[neighbors], 30, alpha=0.5, scale=0.2)
    assert selection.scores is not None
    np.testing.assert_allclose(selection.scores, expected.probabilities, atol=1e-3)
    assert selection.scores.sum() == pytest.approx(1)


def test_rows_like_the_target_are_preferred(tmp_path: Path) -> None:
    given = context(tmp_path)
    selection = tsds().select(given)
    tasks = [sample.metadata["task"] for sample in given.train_dataset.samples]
    assert [tasks[index] for index in selection.indices].count("sum") >= 4


def test_samples_are_embedded_once_a_run_and_cached_for_the_next(tmp_path: Path) -> None:
    selector = tsds()
    encoder = selector.config.encoder
    selector.select(context(tmp_path))
    selector.select(context(tmp_path, round=2))
    assert len(encoder.calls) == 2
    again = tsds(cache_dir=tmp_path)
    again.select(context(tmp_path / "other"))
    assert again.config.encoder.calls == []


def test_other_candidates_get_probabilities_of_their_own(tmp_path: Path) -> None:
    given = context(tmp_path)
    selector = tsds(candidates=20)
    one, two = selector.select(given), selector.select(context(tmp_path, round=2))
    for found in (one, two):
        rows = np.flatnonzero(~np.isnan(found.scores))
        assert len(rows) == 20
        assert set(found.indices.tolist()) <= set(rows.tolist())
        alone = tsds().select(context(tmp_path, train_dataset=given.train_dataset.select(rows.tolist())))
        assert found.scores[rows].tolist() == alone.scores.tolist()


def test_near_duplicates_count_as_one(tmp_path: Path) -> None:
    twin = {"instruction": "What is n50 plus n350?", "output": "n50 plus n350 is n351!"}
    made = [*rows(10), *[{**twin, "input": f"twin{number}"} for number in range(5)]]
    selection = tsds(alpha=0.3).select(context(tmp_path, train_dataset=dataset(made)))
    assert selection.scores is not None
    plain = tsds(alpha=0.3, sigma=0).select(context(tmp_path, train_dataset=dataset(made)))
    assert plain.scores is not None
    assert selection.scores[30:].sum() < plain.scores[30:].sum()


def test_a_small_support_is_topped_up_with_the_nearest_others(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        selection = tsds(alpha=1.0, max_K=2).select(context(tmp_path, num_samples=12))
    assert selection.scores is not None
    support = np.flatnonzero(selection.scores)
    assert set(support) <= set(selection.indices.tolist())
    assert len(set(selection.indices.tolist())) == 12
    assert selection.report["topped_up"] == 12 - len(support)
    assert f"{12 - len(support)} more are taken by their distance" in caplog.text
    assert json.dumps(dict(selection.report))


def test_top_up_goes_by_closeness_then_position() -> None:
    closeness = np.array([0.5, 0.9, 0.5, 0.7], dtype=np.float32)
    assert nearest_others(closeness, np.array([1]), 2).tolist() == [3, 0]


def test_draws_are_successive_and_seeded_by_run_and_round(tmp_path: Path) -> None:
    given = context(tmp_path, num_samples=3, seed=4, round=2)
    selection = tsds().select(given)
    assert selection.scores is not None
    with np.errstate(divide="ignore"):
        keys = np.log(selection.scores) + np.random.default_rng([4, 2]).gumbel(size=30)
    assert selection.indices.tolist() == np.argsort(-keys)[:3].tolist()


def test_defaults_are_the_authors_with_at_most_a_tenth_of_the_candidates(tmp_path: Path) -> None:
    selection = tsds(max_K=None, kde_K=None).select(context(tmp_path))
    assert (selection.report["max_K"], selection.report["kde_K"]) == (3, 3)


@pytest.mark.parametrize("key", ["max_K", "kde_K"])
def test_widths_are_never_clipped(key: str, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=rf"{key} is 31, there are 30 candidates\n.*{key}: 30 or less"):
        tsds(**{key: 31}).check(context(tmp_path))


def test_samples_without_text_are_an_error_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="30 training samples have no text to embed: 0, 1, 2, 3, 4"):
        tsds(text_template="{{ system }}").select(context(tmp_path))


def test_there_must_be_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="tsds needs an encoder"):
        tsds(encoder=None).check(context(tmp_path))


def test_a_missing_model_is_an_error_before_training(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra near")
    with pytest.raises(ModelError, match="cannot load the embedding model 'no/where'"):
        tsds(encoder=None, embed_model="no/where").check(context(tmp_path))


def test_more_samples_than_candidates_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="31 samples are to be selected from 30 candidates"):
        tsds().select(context(tmp_path, num_samples=31))


def test_wrong_parameters_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        TsdsSelector(alpha=2, C=0, sigma=-1, max_K=1)
    assert len(caught.value.problems) == 4
