from __future__ import annotations

import pytest
import torch

from dataflex.data.collate import collate
from dataflex.errors import GradientError
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import sample_gradient
from dataflex.models.model import trainable_parameters
from dataflex.projection.adam import adam_normalize
from dataflex.testing import stepped_optimizer, tiny_context, tiny_lora, tiny_model


def test_moments_come_from_the_optimizer_in_parameter_order():
    model = tiny_lora(tiny_model())
    optimizer = stepped_optimizer(model, 3, betas=(0.8, 0.95), eps=1e-6)
    moments = adam_moments(model, optimizer, "less")
    states = [optimizer.state[parameter] for _, parameter in trainable_parameters(model)]
    assert torch.equal(moments.exp_avg, torch.cat([state["exp_avg"].flatten() for state in states]))
    assert torch.equal(moments.exp_avg_sq, torch.cat([state["exp_avg_sq"].flatten() for state in states]))
    assert (moments.step, moments.betas, moments.eps, moments.variant) == (3, (0.8, 0.95), 1e-6, "less")


def test_the_normalised_gradient_is_the_step_that_adamw_takes(tmp_path):
    context = tiny_context(tmp_path, steps=4)
    moments = adam_moments(context.model, context.optimizer)
    gradient = sample_gradient(context.model, collate([context.train_dataset[0]], 2), context.autocast)
    expected = adam_normalize(gradient[None], moments)[0]
    parameters = [parameter for _, parameter in trainable_parameters(context.model)]
    before = torch.cat([parameter.detach().flatten().clone() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.grad = gradient[start : start + parameter.numel()].view_as(parameter).clone()
        start += parameter.numel()
    rate = 2.0**-4
    context.optimizer.param_groups[0].update(lr=rate, weight_decay=0.0)
    context.optimizer.step()
    after = torch.cat([parameter.detach().flatten() for parameter in parameters])
    step = (before.double() - after.double()) / rate
    # The step is read off float32 weights of size ~0.1, so it is known to about 1e-7 / rate.
    torch.testing.assert_close(step, expected.double(), rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda model: None, "got NoneType"),
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), "got SGD"),
        (lambda model: stepped_optimizer(model, 0), "no moments yet"),
        (lambda model: stepped_optimizer(model, 1, amsgrad=True), "amsgrad"),
    ],
)
def test_unusable_optimizers_are_named(optimizer, message):
    model = tiny_lora(tiny_model())
    with pytest.raises(GradientError, match=message):
        adam_moments(model, optimizer(model))


def test_groups_must_agree():
    model = tiny_lora(tiny_model())
    optimizer = stepped_optimizer(model, 1)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "betas": (0.5, 0.9)})
    with pytest.raises(GradientError, match="share betas and eps"):
        adam_moments(model, optimizer)
