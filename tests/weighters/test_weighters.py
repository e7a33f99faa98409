"""Every built-in weighter against a computation by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataflex.errors import TrainingError
from dataflex.models.model import base_model
from dataflex.testing import tiny_global_batch, tiny_lora, tiny_model
from dataflex.weighters.adapt import AdaptWeighter
from dataflex.weighters.base import GlobalBatch, normalised
from dataflex.weighters.loss import LossWeighter, loss_weights


def batch(**changes) -> GlobalBatch:
    return tiny_global_batch(**({"step": 3} | changes))


def loss_by_hand(model, example) -> float:
    logits = model(torch.tensor([example.input_ids])).logits[0].double()
    labels = example.labels
    losses = [
        float(torch.logsumexp(logits[at - 1], 0) - logits[at - 1, labels[at]])
        for at in range(1, len(labels))
        if labels[at] != -100
    ]
    return sum(losses) / len(losses)


def state_by_hand(model, example) -> np.ndarray:
    states = base_model(model)(torch.tensor([example.input_ids]), output_hidden_states=True).hidden_states[-1][0]
    weights = torch.arange(1, len(states) + 1, dtype=torch.float64)
    return ((weights[:, None] * states.double()).sum(dim=0) / weights.sum()).numpy()


def strategy(name: str, h: float, delta: float) -> float:
    return {
        "linupper": min(h + delta, delta),
        "uniform": 0.0,
        "quadratic": 1 - h * h / (delta * delta),
        "extremes": abs(h),
    }[name]


@pytest.mark.parametrize("name", ["linupper", "uniform", "quadratic", "extremes"])
@pytest.mark.parametrize(("delta", "temperature"), [(1.0, 1.0), (2.5, 0.5)])
def test_loss_weights_follow_the_paper(name, delta, temperature):
    losses = np.random.default_rng(0).gamma(2.0, size=7)
    low, high = losses.min(), losses.max()
    h = [2 * delta * value / (high - low) - delta * (high + low) / (high - low) for value in losses]
    raised = [math.exp(strategy(name, value, delta) / temperature) for value in h]
    found = loss_weights(losses, name, delta, temperature)
    np.testing.assert_allclose(found, np.array(raised) / sum(raised), rtol=1e-12)


def test_equal_losses_weigh_alike():
    for name in ("linupper", "uniform", "quadratic", "extremes"):
        np.testing.assert_allclose(loss_weights(np.full(5, 2.0), name, 1.0, 1.0), 0.2, rtol=1e-12)


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_the_loss_weighter_looks_at_each_sample_alone(micro_batch):
    found = batch(micro_batch=micro_batch)
    with torch.no_grad():
        losses = np.array([loss_by_hand(found.model, example) for example in found.examples])
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    weights = LossWeighter(strategy="quadratic").weights(found)
    np.testing.assert_allclose(weights, loss_weights(losses, "quadratic", 1.0, 1.0), rtol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_adapt_follows_the_formula(micro_batch):
    found = batch(micro_batch=micro_batch)
    with torch.no_grad():
        rows = np.stack([state_by_hand(found.model, example) for example in found.examples])
        anchors = np.stack([state_by_hand(found.model, example) for example in found.eval_dataset])
    unit = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in (rows, anchors)]
    expected = 1 / (1 + np.exp(-(unit[0] @ unit[1].T).mean(axis=1) / 0.2))
    np.testing.assert_allclose(AdaptWeighter(temperature=0.2).weights(found), expected, rtol=1e-5)


def test_adapt_keeps_its_anchors_until_they_are_due():
    weighter = AdaptWeighter(refresh_interval=5, anchors=2)
    weighter.weights(batch(step=3))
    kept = weighter.state_dict()
    other = tiny_lora(tiny_model(seed=7))
    weighter.weights(batch(step=7, model=other))
    assert weighter.state_dict() == kept
    weighter.weights(batch(step=8, model=other))
    assert weighter.state_dict()["refreshed"] == 8
    assert weighter.state_dict()["direction"] != kept["direction"]


def test_a_restored_weighter_goes_on_as_the_unbroken_one():
    unbroken, first, second = (AdaptWeighter(refresh_interval=5) for _ in range(3))
    later = batch(step=4, model=tiny_lora(tiny_model(seed=7)))
    unbroken.weights(batch(step=3))
    first.weights(batch(step=3))
    second.load_state_dict(first.state_dict())
    assert second.weights(later).tolist() == unbroken.weights(later).tolist()


def test_looking_leaves_the_model_as_it_was():
    found = batch()
    found.model.train()
    state = torch.random.get_rng_state()
    LossWeighter().weights(found)
    AdaptWeighter().weights(found)
    assert found.model.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_weights_have_mean_one():
    found = batch()
    np.testing.assert_allclose(normalised(np.array([1.0, 2, 3, 4, 5, 6]), found, "x").mean(), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(normalised(np.full(6, 0.2), found, "x"), np.ones(6))


@pytest.mark.parametrize("wrong", [[1.0] * 5, [1.0, 1, 1, 1, 1, -1], [0.0] * 6, [1.0, 1, 1, 1, 1, math.nan]])
def test_wrong_weights_are_refused(wrong):
    with pytest.raises(TrainingError, match="'x' returned for step 3") as caught:
        normalised(np.array(wrong), replace(batch()), "x")
    assert "samples of the step" in (caught.value.hint or "")
