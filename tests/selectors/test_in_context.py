"""Losses after a few answered target samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dataflex.data.dataset import Example, TokenizedDataset
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import SelectionError
from dataflex.selectors import losses
from dataflex.selectors.in_context import InContextSelector
from dataflex.selectors.less import LessSelector
from dataflex.testing import tiny_context, tiny_dataset


def by_hand(context, shots: list[int]) -> np.ndarray:
    """Minus the loss of each candidate, from the model's log-probabilities in float64, one row at a time."""
    before = [token for row in shots for token in context.eval_dataset[row].input_ids]
    found = []
    for example in context.train_dataset:
        ids = torch.tensor([[*before, *example.input_ids]])
        with torch.no_grad():
            log_probs = context.model(ids).logits[0].double().log_softmax(-1)
        places = [place for place, label in enumerate(example.labels) if place and label != IGNORE_INDEX]
        own = [log_probs[len(before) + place - 1, example.labels[place]] for place in places]
        found.append(float(torch.stack(own).mean()))
    return np.array(found)


@pytest.mark.parametrize(("shots", "tokens"), [(1, 1), (2, 10_000), (9, 300)])
def test_scores_are_losses_after_the_shots_and_the_least_are_chosen(tmp_path, shots, tokens):
    seed = int(np.random.default_rng().integers(1000))
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(9, seed=seed, distinct=True))
    context.model.eval()
    selector = InContextSelector(num_shots=shots, loss_batch_tokens=tokens)
    chosen = selector.select(context)
    expected = by_hand(context, selector.shots(context))
    assert len(selector.shots(context)) == min(shots, 3)
    np.testing.assert_allclose(chosen.scores, expected, rtol=1e-5, err_msg=f"seed {seed}")
    assert chosen.indices.tolist() == np.argsort(-chosen.scores, kind="stable")[:4].tolist()
    assert chosen.report["shots"] == [context.eval_dataset[row].sample.id for row in selector.shots(context)]


def test_shots_are_answered_samples_drawn_anew_by_seed_and_round(tmp_path):
    samples = [*tiny_dataset(8, seed=100)]
    without = [Example(e.sample, e.input_ids, [IGNORE_INDEX] * len(e.input_ids)) for e in samples[:2]]
    context = tiny_context(tmp_path, eval_dataset=TokenizedDataset([*without, *samples[2:]]))
    selector = InContextSelector(num_shots=3)
    drawn = {(seed, r): selector.shots(replace(context, seed=seed, round=r)) for seed in range(4) for r in (1, 2)}
    assert all(len(set(shots)) == 3 and min(shots) >= 2 for shots in drawn.values())
    assert len({tuple(shots) for shots in drawn.values()}) > 4
    assert selector.shots(context) == drawn[0, 1]
    with pytest.raises(SelectionError, match="none has an answer"):
        selector.check(replace(context, eval_dataset=TokenizedDataset(without)))


def test_losses_are_computed_once_and_again_after_other_shots(tmp_path, monkeypatch):
    context, computed = tiny_context(tmp_path), []
    real = losses.mean_losses
    monkeypatch.setattr(losses, "mean_losses", lambda model, batch: computed.append(1) or real(model, batch))
    first = InContextSelector(num_shots=2).select(context)
    count = len(computed)
    again = InContextSelector(num_shots=2).select(context)
    assert np.array_equal(again.scores, first.scores)
    assert len(computed) == count > 0
    assert not np.array_equal(InContextSelector(num_shots=1).select(context).scores, first.scores)
    assert len(computed) > count


def test_shots_that_leave_no_room_are_said_before_anything_is_computed(tmp_path, caplog):
    context = tiny_context(tmp_path)
    config = context.model.get_base_model().config
    config.max_position_embeddings = max(context.train_dataset.lengths) + max(context.eval_dataset.lengths)
    InContextSelector(num_shots=1).check(context)
    assert not caplog.text
    InContextSelector(num_shots=3).check(context)
    assert "a num_shots below 3" in caplog.text


def test_it_goes_before_and_after_a_selector_by_gradients(tmp_path):
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(12, distinct=True), num_samples=3)
    less, own = LessSelector(proj_dim=256), InContextSelector()
    wide = [
        selector.select(replace(context, num_samples=6, output_dir=tmp_path / selector.name))
        for selector in (own, less)
    ]
    after = LessSelector(proj_dim=256, prefilter={"name": "in_context", "keep": 0.5})
    before = InContextSelector(prefilter={"name": "less", "keep": 0.5, "params": {"proj_dim": 256}})
    for selector, first in zip((after, before), wide, strict=True):
        chosen = selector.select(replace(context, output_dir=tmp_path / f"narrowed {selector.name}"))
        assert set(np.flatnonzero(~np.isnan(chosen.scores))) == set(first.indices.tolist())
    np.testing.assert_allclose(chosen.scores[wide[1].indices], wide[0].scores[wide[1].indices], rtol=1e-5)
