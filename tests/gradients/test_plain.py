from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from dataflex.data.collate import Batch, collate
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import GradientError
from dataflex.gradients.plain import policy_gradient, policy_loss, sample_gradient, sample_loss
from dataflex.models.losses import summed_loss, token_log_probs
from dataflex.models.model import trainable_parameters, undisturbed
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model


@pytest.fixture
def model():
    return tiny_lora(tiny_model()).double()


def flat_grad(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for _, parameter in trainable_parameters(model)])


def reference_loss(model, example):
    """Mean cross-entropy over label tokens from full logits, one token at a time."""
    logits = model(torch.tensor([example.input_ids])).logits[0]
    losses = [
        -torch.log_softmax(logits[position - 1], dim=-1)[label]
        for position, label in enumerate(example.labels)
        if label != IGNORE_INDEX
    ]
    return torch.stack(losses).mean()


def test_sample_gradient_equals_a_plain_backward_pass(model):
    for example in tiny_dataset(4, seed=3):
        expected = flat_grad(model, reference_loss(model, example))
        model.zero_grad()
        with undisturbed(model):
            found = sample_gradient(model, collate([example], 2), nullcontext)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_padding_does_not_change_the_gradient(model):
    example = tiny_dataset(1, seed=5)[0]
    batch = collate([example], 2)
    pad = torch.zeros((1, 7), dtype=torch.int64)
    padded = Batch(
        torch.cat([batch.input_ids, pad], dim=1),
        torch.cat([batch.attention_mask, pad], dim=1),
        torch.cat([batch.labels, torch.full_like(pad, IGNORE_INDEX)], dim=1),
    )
    found = sample_gradient(model, padded, nullcontext)
    torch.testing.assert_close(found, sample_gradient(model, batch, nullcontext), rtol=1e-9, atol=1e-12)


def test_summed_loss_adds_up_over_a_batch(model):
    examples = list(tiny_dataset(5, seed=1))
    total, count = summed_loss(model, collate(examples, 2))
    parts = [summed_loss(model, collate([example], 2)) for example in examples]
    assert count == sum(tokens for _, tokens in parts)
    torch.testing.assert_close(total, sum(loss for loss, _ in parts), rtol=1e-9, atol=1e-12)


def test_summed_loss_without_labels_is_zero(model):
    batch = collate(list(tiny_dataset(2)), 2)
    empty = Batch(batch.input_ids, batch.attention_mask, torch.full_like(batch.labels, IGNORE_INDEX))
    total, count = summed_loss(model, empty)
    assert (float(total), count) == (0.0, 0)
    with pytest.raises(GradientError, match="no label tokens"):
        sample_loss(model, Batch(*(getattr(empty, name)[:1] for name in ("input_ids", "attention_mask", "labels"))))


def test_gradient_pass_leaves_the_model_as_it_was(model):
    model.train()
    model.base_model.model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    parameters = [parameter for _, parameter in trainable_parameters(model)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    state = torch.get_rng_state()
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
        sample_gradient(model, collate([tiny_dataset(1)[0]], 2), nullcontext)
        torch.rand(3)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in parameters)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_gradient_equals_one_backward_pass_an_answer(model, temperature):
    prompt, answers, weights = [5, 9, 23, 40], [[7, 8, 9], [11], [7, 30]], [0.5, -1.0, 2.0]
    expected = torch.zeros(())
    for answer, weight in zip(answers, weights, strict=True):
        logits = model(torch.tensor([prompt + answer])).logits[0] / temperature
        log_probs = torch.log_softmax(logits, dim=-1)
        chosen = [log_probs[len(prompt) - 1 + place, token] for place, token in enumerate(answer)]
        expected = expected - weight * torch.stack(chosen).sum() / len(answers)
    found = policy_loss(model, prompt, answers, weights, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    gradient = policy_gradient(model, prompt, answers, weights, temperature=temperature, autocast=nullcontext)
    torch.testing.assert_close(gradient, flat_grad(model, expected), rtol=1e-9, atol=1e-12)


def test_unused_parameters_have_zero_gradients(model):
    extra = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    model.register_parameter("unused", extra)
    gradient = sample_gradient(model, collate([tiny_dataset(1)[0]], 2), nullcontext)
    start = 0
    for name, parameter in trainable_parameters(model):
        if name == "unused":
            assert torch.equal(gradient[start : start + 3], torch.zeros(3, dtype=torch.float64))
        start += parameter.numel()
    assert start == len(gradient)


def test_token_log_probs_ignores_masked_targets():
    logits = torch.randn(2, 3, 5, dtype=torch.float64)
    targets = torch.tensor([[1, IGNORE_INDEX, 2], [0, 4, IGNORE_INDEX]])
    found = token_log_probs(logits, targets, 0.5)
    expected = torch.log_softmax(logits / 0.5, dim=-1).gather(2, targets.clamp_min(0).unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(found, torch.where(targets == IGNORE_INDEX, 0.0, expected))
