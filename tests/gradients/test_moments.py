from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dataflex.data.collate import collate
from dataflex.errors import GradientError
from dataflex.gradients.moments import adam_moments, learning_rates
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.model import trainable_parameters
from dataflex.projection.adam import adam_normalize
from dataflex.projection.projector import Projector
from dataflex.testing import stepped_optimizer, tiny_context, tiny_lora, tiny_model


def test_moments_come_from_the_optimizer_in_parameter_order():
    model = tiny_lora(tiny_model())
    optimizer = stepped_optimizer(model, 3, betas=(0.8, 0.95), eps=1e-6)
    moments = adam_moments(model, optimizer, "less")
    states = [optimizer.state[parameter] for _, parameter in trainable_parameters(model)]
    assert torch.equal(moments.exp_avg, torch.cat([state["exp_avg"].flatten() for state in states]))
    assert torch.equal(moments.exp_avg_sq, torch.cat([state["exp_avg_sq"].flatten() for state in states]))
    assert (moments.step, moments.betas, moments.eps, moments.variant) == (3, (0.8, 0.95), 1e-6, "less")


def lora_plus(model, ratio=16.0, steps=0, **settings):
    """AdamW whose B matrices learn ``ratio`` times as fast (LoRA+)."""
    named = trainable_parameters(model)
    groups = [
        {"params": [p for name, p in named if "lora_A" in name], "lr": 2.0**-8},
        {"params": [p for name, p in named if "lora_B" in name], "lr": 2.0**-8 * ratio},
    ]
    return stepped(model, torch.optim.AdamW(groups, **settings), steps)


def stepped(model, optimizer, steps=1):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for _, parameter in trainable_parameters(model):
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 0.01
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("make", [stepped_optimizer, lambda model, steps: lora_plus(model, steps=steps)])
def test_the_normalised_gradient_is_the_step_that_adamw_takes(tmp_path, make):
    context = tiny_context(tmp_path)
    optimizer = make(context.model, 4)
    moments = adam_moments(context.model, optimizer)
    gradient = sample_gradient(context.model, collate([context.train_dataset[0]], 2), context.autocast)
    expected = adam_normalize(gradient[None], moments)[0]
    parameters = [parameter for _, parameter in trainable_parameters(context.model)]
    before = torch.cat([parameter.detach().flatten().clone() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.grad = gradient[start : start + parameter.numel()].view_as(parameter).clone()
        start += parameter.numel()
    for group in optimizer.param_groups:
        group.update(lr=group["lr"] * 16, weight_decay=0.0)
    rate = sum(group["lr"] * sum(p.numel() for p in group["params"]) for group in optimizer.param_groups) / len(moments)
    optimizer.step()
    after = torch.cat([parameter.detach().flatten() for parameter in parameters])
    step = (before.double() - after.double()) / rate
    # The step is read off float32 weights of size ~0.1, so it is known to about 1e-7 / rate.
    torch.testing.assert_close(step, expected.double(), rtol=1e-5, atol=3e-5)


def test_features_follow_the_learning_rates_of_the_groups(tmp_path):
    context = tiny_context(tmp_path)
    optimizer = lora_plus(context.model, steps=2)
    context = replace(context, optimizer=optimizer)
    moments = adam_moments(context.model, optimizer)
    gradients = torch.stack(
        [sample_gradient(context.model, collate([row], 2), context.autocast) for row in context.train_dataset]
    )
    expected = adam_normalize(gradients, moments)
    features = SampleFeatures(
        context,
        context.train_dataset,
        Projector(len(moments), "identity"),
        gradient_type="adam",
        adam_variant="adamw",
        batch_tokens=512,
    )
    features.prepare()
    found = features.features(range(len(context.train_dataset)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert features.facts()["gradient"]["rates"] == moments.rates
    even = adam_normalize(gradients, replace(moments, rates=(), largest_rate=1.0))
    assert torch.nn.functional.cosine_similarity(expected, even).max() < 0.95  # what was computed before


def test_rates_are_relative_to_their_mean_and_survive_a_schedule_that_ends_at_zero():
    model = tiny_lora(tiny_model())
    optimizer = lora_plus(model, ratio=4.0)
    rates = learning_rates(model, optimizer)
    ends = [0, *(end for end, _ in rates)]
    assert sum(rate * (end - start) for start, (end, rate) in zip(ends, rates, strict=False)) == pytest.approx(ends[-1])
    assert {round(rate / min(rate for _, rate in rates), 6) for _, rate in rates} == {1.0, 4.0}
    for group in optimizer.param_groups:
        group.update(initial_lr=group["lr"], lr=0.0)
    assert learning_rates(model, optimizer) == rates
    assert learning_rates(model, stepped_optimizer(model, 0)) == ()
    frozen = lora_plus(model, ratio=0.0)  # B does not move
    assert {rate > 0 for _, rate in learning_rates(model, frozen)} == {True, False}


class Cautious(torch.optim.AdamW):
    """Another step than its parent's."""


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda model: None, "got NoneType"),
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), "got SGD"),
        (lambda model: stepped_optimizer(model, 0), "no moments yet"),
        (lambda model: stepped_optimizer(model, 1, amsgrad=True), "group 0 has amsgrad=True"),
        (lambda model: stepped_optimizer(model, 1, maximize=True), "group 0 has maximize=True"),
        (
            lambda model: lora_plus(model, steps=1, maximize=True),
            "group 0 has maximize=True; group 1 has maximize=True",
        ),
        (
            lambda model: stepped(model, Cautious(model.parameters())),
            "got Cautious, a subclass whose step may be another",
        ),
        (
            lambda model: stepped(model, torch.optim.Adam(model.parameters(), weight_decay=0.1)),
            r"group 0 of Adam has weight_decay=0\.1, which becomes part of the gradient",
        ),
    ],
)
def test_unusable_optimizers_are_named(optimizer, message):
    model = tiny_lora(tiny_model())
    with pytest.raises(GradientError, match=message):
        adam_moments(model, optimizer(model))


def test_adam_without_weight_decay_or_with_a_decoupled_one_is_adamw():
    for settings in ({}, {"weight_decay": 0.1, "decoupled_weight_decay": True}):
        model = tiny_lora(tiny_model())
        assert adam_moments(model, stepped(model, torch.optim.Adam(model.parameters(), **settings))).step == 1


def test_parameters_that_took_no_step_or_fewer_are_named():
    """The advice was a longer warm-up, which changes nothing for a parameter that no gradient reaches."""
    model = tiny_lora(tiny_model())
    optimizer = stepped_optimizer(model, 3)
    names, parameters = zip(*trainable_parameters(model), strict=True)
    del optimizer.state[parameters[2]]
    optimizer.state[parameters[5]]["step"] -= 1
    with pytest.raises(GradientError) as caught:
        adam_moments(model, optimizer)
    message = str(caught.value)
    assert f"2 of {len(names)} trained parameters have taken no step, or fewer than others" in message
    assert f"{names[2]}, {names[5]} (2 of 3 steps)" in message
    assert "warm-up" not in message


def test_groups_must_agree():
    model = tiny_lora(tiny_model())
    optimizer = stepped_optimizer(model, 1)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "betas": (0.5, 0.9)})
    with pytest.raises(GradientError, match="share betas and eps"):
        adam_moments(model, optimizer)
