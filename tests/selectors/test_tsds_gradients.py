"""TSDS on gradient features: equal to the naive computation, ties by position, rows that have no direction."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.errors import SelectionError
from dataflex.gradients.samples import SampleFeatures
from dataflex.offline.dry_run import dry_run
from dataflex.retrieval.transport import distances, transport
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.tsds import TsdsConfig, TsdsSelector
from dataflex.selectors.tsds.vectors import nearest
from dataflex.testing import tiny_context, tiny_dataset
from helpers.influence import full_cosines


def context(folder: Any, **changes: Any) -> SelectionContext:
    """16 different candidates, 4 targets."""
    defaults = {"train_dataset": tiny_dataset(16, distinct=True), "eval_dataset": tiny_dataset(4, seed=100)}
    return tiny_context(folder, **(defaults | changes))


def tsds(**params: Any) -> TsdsSelector:
    defaults = {"representation": "gradient", "proj_dim": 256, "save_interval": 5, "alpha": 0.3, "C": 0.5}
    return TsdsSelector(**(defaults | {"max_K": 8, "kde_K": 5} | params))


def naive(cosines: np.ndarray, between: np.ndarray, config: TsdsConfig) -> np.ndarray:
    """Probabilities ``(n,)`` from cosines of candidates with targets ``(n, q)`` and with each other ``(n, n)``."""
    neighbors = np.argsort(-cosines.T, axis=1, kind="stable")[:, : config.max_K]
    retrieved = np.unique(neighbors)
    kernel = np.maximum(0, 1 - (2 - 2 * between[np.ix_(retrieved, retrieved)]) / config.sigma**2)
    density = np.zeros(len(cosines))
    density[retrieved] = -np.sort(-kernel, axis=1)[:, : config.kde_K].sum(axis=1)
    lengths = distances(np.take_along_axis(cosines.T, neighbors, axis=1))
    return transport(
        neighbors, lengths, density[neighbors], len(cosines), alpha=config.alpha, scale=config.C
    ).probabilities


@pytest.mark.parametrize("kind", [{}, {"gradient_type": "sgd"}, {"adam_variant": "second_moment"}])
def test_probabilities_are_those_of_whole_gradients(tmp_path, kind):
    given = context(tmp_path)
    parameters = sum(p.numel() for p in given.model.parameters() if p.requires_grad)
    selector = tsds(projection="identity", proj_dim=parameters, sigma=1.3, **kind)
    found = selector.select(given)
    cosines = full_cosines(given, **kind)
    rows = given.train_dataset
    features = SampleFeatures(
        given,
        rows,
        selector.gradients.projector(),
        gradient_type=selector.config.gradient_type,
        adam_variant=selector.config.adam_variant,
        batch_tokens=2048,
    )
    features.prepare()
    unit = torch.nn.functional.normalize(features.features(range(len(rows))).double())
    expected = naive(cosines, (unit @ unit.T).numpy(), selector.config)
    np.testing.assert_allclose(found.scores, expected, atol=1e-4)
    assert found.scores.sum() == pytest.approx(1)
    with np.errstate(divide="ignore"):
        keys = np.log(found.scores) + np.random.default_rng([0, 1]).gumbel(size=16)
    assert found.indices.tolist() == np.argsort(-keys)[:4].tolist()


@given(
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    targets=st.integers(1, 4),
    width=st.integers(2, 30),
    seed=st.integers(0, 10_000),
)
def test_lists_of_neighbours_equal_a_whole_sort(counts, targets, width, seed):
    total = sum(counts)
    cosines = np.random.default_rng(seed).integers(0, 4, (total, targets)) / 4.0  # many ties
    ends = np.cumsum(counts)
    blocks = [
        (int(end - count), torch.from_numpy(cosines[end - count : end]))
        for count, end in zip(counts, ends, strict=True)
    ]
    listed, values, closeness = nearest(blocks, width, total)
    expected = np.argsort(-cosines.T, axis=1, kind="stable")[:, :width]
    assert np.array_equal(listed, expected)
    assert np.array_equal(values, np.take_along_axis(cosines.T, expected, axis=1))
    assert np.array_equal(closeness, cosines.max(axis=1))


def test_equal_rows_are_listed_by_position(tmp_path, monkeypatch):
    table = torch.randn(6, 256, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(SampleFeatures, "features", lambda self, rows: table[[row % 6 for row in rows]])
    rows = tiny_dataset(6, distinct=True)
    twice = rows.select([0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5])
    found = tsds(max_K=2, kde_K=2, sigma=0, alpha=1.0).select(context(tmp_path, train_dataset=twice))
    # Each target's own row is its nearest; its twin stands further down and is the second, whose mass is the rest.
    assert found.scores[:4].tolist() == [0.25] * 4
    assert found.scores[4:].tolist() == [0.0] * 8


def test_each_round_looks_at_the_model_as_it_is_and_a_killed_one_uses_what_is_stored(tmp_path, monkeypatch):
    computed: list[int] = []
    plain = SampleFeatures.features
    monkeypatch.setattr(SampleFeatures, "features", lambda self, rows: (computed.extend(rows), plain(self, rows))[1])
    selector = tsds()
    given = context(tmp_path)
    first = selector.select(given)
    assert len(computed) == 20
    again = tsds().select(given)
    assert len(computed) == 20
    assert np.array_equal(again.scores, first.scores)
    later = selector.select(context(tmp_path, steps=9, round=2))
    assert len(computed) == 40
    assert not np.array_equal(later.scores, first.scores)
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["step-9"]


def test_rows_without_a_direction_are_never_drawn_and_counted(tmp_path, monkeypatch, caplog):
    plain = SampleFeatures.features

    def features(self: Any, rows: Any) -> torch.Tensor:
        found = plain(self, rows)
        for place, row in enumerate(rows):
            if len(self) == 16 and row in (2, 5):
                found[place] = 0.0 if row == 2 else float("nan")
            if len(self) == 4 and row == 1:
                found[place] = 0.0
        return found

    monkeypatch.setattr(SampleFeatures, "features", features)
    caplog.set_level(logging.INFO, logger="dataflex")
    selector = tsds(max_K=16)
    found = selector.select(context(tmp_path, num_samples=14))
    assert found.scores[[2, 5]].tolist() == [-np.inf, -np.inf]
    assert sorted(found.indices.tolist()) == [row for row in range(16) if row not in (2, 5)]
    assert found.report["left_out"]["targets with a gradient that is zero or not finite"] == 1
    assert found.report["candidates"] == {"total": 16, "not_finite": 1, "zero": 1}
    assert -1 <= found.report["reliability"]["targets"] <= 1
    assert "reliability of the target" in caplog.text
    with pytest.raises(SelectionError, match="15 samples are to be selected from 14 candidates"):
        tsds().select(context(tmp_path, num_samples=15))


def test_a_prefilter_goes_first_and_the_dry_run_says_so(tmp_path):
    given = context(tmp_path)
    selector = tsds(max_K=4, kde_K=4, candidates=12, prefilter={"name": "rds", "keep": 0.5})
    selector.check(given)
    found = selector.select(given)
    assert int(np.sum(~np.isnan(found.scores))) == 6
    parts = [(part.name, part.rows) for part in dry_run(selector, given).parts]
    assert parts[1:] == [("prefilter: hidden states", 12), ("training gradients", 6), ("evaluation gradients", 4)]
    with pytest.raises(SelectionError, match="max_K is 8, there are 6 candidates"):
        tsds(candidates=12, prefilter={"name": "rds", "keep": 0.5}).check(given)


def test_what_gradients_need_is_checked_before_training(tmp_path):
    with pytest.raises(SelectionError, match="there is no optimizer"):
        tsds().check(context(tmp_path, optimizer=None))
    without = context(tmp_path, eval_dataset=None)
    with pytest.raises(SelectionError, match="needs an evaluation set"):
        tsds().check(without)


def test_parameters_of_the_other_representation_are_idle():
    idle = {path[0] for path, _ in TsdsConfig(representation="gradient").find_idle()}
    assert {"embed_model", "encoder", "batch_size"} <= idle
    assert "proj_dim" not in idle
    idle = {path[0] for path, _ in TsdsConfig().find_idle()}
    assert {"proj_dim", "gradient_type", "keep_features"} <= idle
    assert not {"embed_model", "cache_dir", "max_K", "candidates"} & idle
