from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.data.collate import collate
from dataflex.errors import ConfigError, SelectionError
from dataflex.gradients.plain import sample_loss
from dataflex.gradients.store import FeatureStore
from dataflex.selectors import losses
from dataflex.selectors.delta_loss import DeltaLossSelector, window
from dataflex.selectors.draw import weighted_draw
from dataflex.selectors.loss import LossSelector
from dataflex.testing import tiny_context, tiny_dataset
from helpers.runs import tiny_trainer


def plain_losses(context):
    """One forward pass a sample."""
    with torch.no_grad():
        return np.array([float(sample_loss(context.model, collate([e], 2))) for e in context.train_dataset])


def changed(context, step, noise=0.05):
    """The context after a change of the model."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in context.model.parameters():
            if parameter.requires_grad:
                parameter += noise * torch.randn(parameter.shape, generator=generator)
    return replace(context, step=step, round=context.round + 1)


@pytest.mark.parametrize("tokens", [1, 90, 10_000])
def test_losses_are_those_of_each_sample_alone(tmp_path, tokens):
    context = tiny_context(tmp_path)
    context.model.train()
    found = LossSelector(loss_batch_tokens=tokens).losses(context)
    context.model.eval()
    np.testing.assert_allclose(found, plain_losses(context), rtol=1e-5)


def test_finished_losses_are_not_computed_again(tmp_path, monkeypatch):
    context = tiny_context(tmp_path)
    first = LossSelector().losses(context)
    monkeypatch.setattr(losses, "mean_losses", lambda *_: pytest.fail("computed again"))
    assert np.array_equal(LossSelector().losses(context), first)


@given(st.lists(st.sampled_from([0.0, 0.025, 1.0, 5.0]), min_size=1, max_size=12), st.data())
def test_a_draw_takes_positive_weights_first(weights, data):
    count = data.draw(st.integers(0, len(weights)))
    stream = np.random.default_rng(data.draw(st.integers(0, 100)))
    drawn = weighted_draw(np.array(weights), count, stream).tolist()
    assert len(set(drawn)) == len(drawn) == count
    positive = sum(weight > 0 for weight in weights)
    assert all(weights[row] > 0 for row in drawn[:positive])
    with pytest.raises(SelectionError, match="samples are to be drawn"):
        weighted_draw(np.array(weights), len(weights) + 1, stream)


def test_a_draw_has_the_probabilities_of_drawing_one_after_the_other():
    weights = np.array([5.0, 1.0, 1.0, 0.0])
    stream = np.random.default_rng(0)
    draws = np.array([weighted_draw(weights, 2, stream) for _ in range(20_000)])
    first = np.bincount(draws[:, 0], minlength=4) / len(draws)
    np.testing.assert_allclose(first, weights / 7, atol=0.01)  # three standard errors
    second = np.bincount(draws[draws[:, 0] == 1, 1], minlength=4) / np.sum(draws[:, 0] == 1)
    np.testing.assert_allclose(second, [5 / 6, 0, 1 / 6, 0], atol=0.02)


@pytest.mark.parametrize(("focus", "low", "high"), [("low", 0, 4), ("medium", 4, 8), ("high", 8, 12)])
def test_the_bin_in_focus_is_drawn_more_often(tmp_path, focus, low, high):
    context = tiny_context(tmp_path)
    losses = plain_losses(context)
    inside = set(np.argsort(losses)[low:high].tolist())
    selector = LossSelector(focus=focus, focus_weight=5)
    found, stream = selector.losses(context), np.random.default_rng(0)
    usable, weights = selector.weigh(context, found, stream)
    drawn = [selector.draw(weights.weights, usable, 1, stream)[0] for _ in range(300)]
    share = sum(int(row) in inside for row in drawn) / len(drawn)
    assert share == pytest.approx(20 / 28, abs=0.08)  # three standard errors
    sharp = LossSelector(focus=focus, temperature=0.001).select(context)
    assert set(sharp.indices.tolist()) == inside
    np.testing.assert_allclose(sharp.scores, losses, rtol=1e-5)
    edges = np.quantile(losses, (1 / 3, 2 / 3))
    np.testing.assert_allclose(sharp.report["edges"], edges, rtol=1e-5)
    assert sharp.report["bins"] == {"low": 4, "medium": 4, "high": 4}


def test_draws_repeat_only_when_asked(tmp_path):
    context = tiny_context(tmp_path, num_samples=13)
    with pytest.raises(SelectionError, match="13 samples are to be drawn and 12 candidates can be"):
        LossSelector().select(context)
    repeated = LossSelector(replacement=True).select(replace(context, num_samples=30))
    assert repeated.repeats
    assert len(repeated.indices) == 30


def test_losses_that_are_not_finite_are_left_out_and_named(tmp_path, monkeypatch, caplog):
    real = FeatureStore.write

    def write(self, start, features):
        features[self.layout.places()[3]] = float("inf")
        real(self, start, features)

    monkeypatch.setattr(FeatureStore, "write", write)
    context = tiny_context(tmp_path, num_samples=11)
    for selector in (LossSelector(), LossSelector(replacement=True), DeltaLossSelector()):
        selection = selector.select(context)
        assert 3 not in selection.indices
        assert selection.scores[3] == -np.inf
        assert selection.report["candidates"] == {"total": 12, "not_finite": 1}
        assert selection.report["left_out"] == {"candidates with a loss that is not finite": 1}
        json.dumps(selector.state_dict(), allow_nan=False)
    assert f"left out: {context.train_dataset[3].sample.id}" in caplog.text
    with pytest.raises(SelectionError, match="12 samples are to be drawn and 11"):
        LossSelector().select(replace(context, num_samples=12))


@pytest.mark.parametrize("replacement", [False, True])
def test_no_finite_loss_at_all_is_said(tmp_path, monkeypatch, replacement):
    selector = LossSelector(replacement=replacement)
    monkeypatch.setattr(selector, "losses", lambda context: np.full(12, np.nan))
    with pytest.raises(SelectionError, match=r"samples are to be drawn and (0 candidates|no candidate)"):
        selector.select(tiny_context(tmp_path))


def test_weights_are_those_among_what_can_be_drawn(tmp_path):
    losses = np.array([np.nan, 1.0, 1.0, 1.0])  # equal losses make one bin, the low one
    selector = LossSelector(focus="high", temperature=1e-3, replacement=True)
    usable, found = selector.weigh(tiny_context(tmp_path), losses, np.random.default_rng(0))
    assert found.weights.tolist() == [0, 1, 1, 1]
    assert set(selector.draw(found.weights, usable, 50, np.random.default_rng(0)).tolist()) == {1, 2, 3}


@pytest.mark.parametrize(
    "params", [{"quantiles": [0.6, 0.3]}, {"focus": "most"}, {"temperature": 0}, {"focus_weight": 0}]
)
def test_wrong_parameters_are_refused(params):
    with pytest.raises(ConfigError, match="loss: "):
        LossSelector(**params)


def test_the_window_slides_over_the_ranks():
    sigmoid = {0.0: 0.0066928509, 0.5: 0.5, 1.0: 0.9933071491}
    for number, x in ((1, 0.0), (2, 0.5), (3, 1.0)):
        start = int(sigmoid[x] * 0.8 * 1000)
        assert window(1000, 0.2, number, 3) == (start, start + 200)
    assert window(1000, 0.2, 1, 1) == (5, 205)
    assert window(3, 0.2, 2, 2) == (2, 3)
    assert window(10, 1.0, 2, 2) == (0, 10)


def test_delta_loss_draws_from_the_window_of_what_was_learnt(tmp_path):
    context = tiny_context(tmp_path, num_rounds=3, num_samples=2)
    selector = DeltaLossSelector(window_size=0.25)
    before = plain_losses(context)
    first = selector.select(context)
    assert first.report["first_selection"]
    assert first.scores.tolist() == [0.0] * 12
    later = changed(context, step=5)
    progress = before - plain_losses(later)
    selection = selector.select(later)
    np.testing.assert_allclose(selection.scores, progress, atol=1e-5)
    start, stop = selection.report["window"]
    assert (start, stop) == (4, 7)
    assert selection.report["risen"] == int((progress < 0).sum())
    _, weights = selector.weigh(later, before - progress, np.random.default_rng(0))
    ranked = np.argsort(-progress, kind="stable")
    expected = np.full(12, 0.025)
    expected[ranked[4:7]] = 1.0
    expected[progress < 0] = 0.0
    np.testing.assert_array_equal(weights.weights, expected)


def test_an_even_draw_where_nothing_is_known_yet(tmp_path):
    context = tiny_context(tmp_path, num_samples=1)
    losses, drawn = plain_losses(context), []
    for seed in range(240):
        stream, selector = np.random.default_rng(seed), DeltaLossSelector()
        usable, weights = selector.weigh(context, losses, stream)
        drawn.append(selector.draw(weights.weights, usable, 1, stream)[0])
    assert np.bincount(drawn, minlength=12).max() < 45  # 20 expected, standard deviation 4.3


def test_the_first_losses_survive_in_the_state(tmp_path):
    context = tiny_context(tmp_path, num_rounds=2)
    selector = DeltaLossSelector()
    assert selector.state_dict() == {}
    selector.select(context)
    resumed = DeltaLossSelector()
    resumed.load_state_dict(json.loads(json.dumps(selector.state_dict())))
    later = changed(context, step=5)
    assert np.array_equal(resumed.select(later).indices, selector.select(later).indices)
    assert np.array_equal(resumed.select(later).scores, selector.select(later).scores)
    with pytest.raises(SelectionError, match="remembers 12 losses of its first selection, there are 8"):
        resumed.select(replace(later, train_dataset=tiny_dataset(8)))


def test_a_resumed_run_selects_the_same(tmp_path):
    def trainer(name, **args):
        return tiny_trainer(tmp_path / name, selector=DeltaLossSelector(), save_steps=1, **args)

    for name in ("whole", "part"):
        trainer(name).train()
    for step in (5, 6, 7, 8):
        (tmp_path / "part" / f"checkpoint-{step}").rename(tmp_path / f"away-{step}")
    (tmp_path / "part" / "selections" / "step-5.parquet").unlink()
    trainer("part", resume_from_checkpoint=True).train()
    files = [tmp_path / name / "selections" / "step-5.parquet" for name in ("whole", "part")]
    tables = [pq.read_table(file).to_pylist() for file in files]
    assert tables[0] == tables[1]
    assert any(row["score"] for row in tables[0])
