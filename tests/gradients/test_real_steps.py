"""Features of a sample against the step that a run's optimizer really takes on that sample alone."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dataflex.data.collate import collate
from dataflex.errors import GradientError
from dataflex.gradients.moments import plain_rates
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.losses import mean_losses
from dataflex.models.model import trainable_parameters
from dataflex.models.optimizers import KINDS
from dataflex.projection.projector import Projector
from dataflex.selectors.base import SelectionContext
from dataflex.testing import tiny_context, tiny_lora, tiny_model
from dataflex.training.optimization import create_optimizer
from helpers.runs import tiny_arguments

quantised = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes (extra quant)")
paged = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
RATIOS = [1.0, 16.0]
PAD = 2


def moved(context: SelectionContext, rows: list[Any], *, alone: bool = False) -> Tensor:
    """The step ``(p,)`` that the optimizer takes on the mean gradient of some rows, times -1."""
    parameters = [parameter for _, parameter in trainable_parameters(context.model)]
    before = torch.cat([parameter.detach().flatten().clone() for parameter in parameters])
    if alone:
        flat = sample_gradient(context.model, collate(rows, PAD), context.autocast)
        for parameter, part in zip(parameters, flat.split([own.numel() for own in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
    else:
        mean_losses(context.model, collate(rows, PAD)).mean().backward()
    context.optimizer.step()
    context.optimizer.zero_grad()
    return before - torch.cat([parameter.detach().flatten() for parameter in parameters])


def stepped(folder: Path, optim: str, ratio: float, steps: int, settings: dict[str, Any]) -> SelectionContext:
    """A model after some steps of a run's optimizer: matrices for 8-bit states, B at ``ratio`` times the rate of A."""
    torch.manual_seed(5)
    model = tiny_lora(tiny_model(), r=256)
    args = tiny_arguments(folder, optim=optim, learning_rate=1e-3, loraplus_lr_ratio=ratio)
    optimizer = create_optimizer(model, args)
    assert len({group["lr"] for group in optimizer.param_groups}) == len({1.0, ratio})
    for group in optimizer.param_groups:
        group.update(settings)
    context = tiny_context(folder, model=model, optimizer=optimizer)
    for step in range(steps):
        moved(context, [context.train_dataset[row % 12] for row in range(step, step + 4)])
    return context


def step_of(context: SelectionContext, row: int, gradient_type: Any) -> Tensor:
    """u ``(p,)`` of a row."""
    size = sum(parameter.numel() for _, parameter in trainable_parameters(context.model))
    features = SampleFeatures(
        context,
        context.train_dataset,
        Projector(size, "identity"),
        gradient_type=gradient_type,
        adam_variant="adamw",
        batch_tokens=512,
        rates=plain_rates(context.model, context.optimizer),
    )
    features.prepare()
    return features.features([row])[0]


def cosine(context: SelectionContext, row: int, gradient_type: Any) -> float:
    expected = step_of(context, row, gradient_type).double()
    found = moved(context, [context.train_dataset[row]], alone=True).double()
    return float(torch.nn.functional.cosine_similarity(expected, found, dim=0))


EXACT = [
    ("adamw_torch", {}),
    ("adamw_torch", {"foreach": True}),
    ("adamw_torch_fused", {}),
    pytest.param("adamw_8bit", {}, marks=quantised),
    pytest.param("paged_adamw_32bit", {}, marks=[quantised, paged]),
    pytest.param("paged_adamw_8bit", {}, marks=[quantised, paged]),
]


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("optim", "settings"), EXACT)
def test_u_is_the_step_on_that_sample(tmp_path, optim, settings, ratio):
    context = stepped(tmp_path, optim, ratio, 6, settings)
    assert cosine(context, 7, "adam") >= 0.9999


@pytest.mark.parametrize("ratio", RATIOS)
def test_plain_descent_steps_by_the_gradient_and_the_rates(tmp_path, ratio):
    context = stepped(tmp_path, "sgd", ratio, 4, {})
    assert cosine(context, 7, "sgd") >= 0.9999
    even = step_of(replace(context, optimizer=None), 7, "sgd")
    turned = float(torch.nn.functional.cosine_similarity(even, step_of(context, 7, "sgd"), dim=0))
    assert (turned > 0.9999) == (ratio == 1.0)


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_factored_moment_comes_close(tmp_path, ratio):
    """The page states this bound."""
    context = stepped(tmp_path, "adafactor", ratio, 20, {})
    assert cosine(context, 7, "adam") > 0.95


def test_a_step_of_muon_is_not_that_of_the_gradient(tmp_path):
    """The page says how far it is."""
    context = stepped(tmp_path, "muon", 1.0, 10, {})
    with pytest.raises(GradientError, match="got Muon"):
        step_of(context, 7, "adam")
    assert cosine(context, 7, "sgd") == pytest.approx(0.3, abs=0.1)


def test_every_optimizer_of_a_run_is_compared_with_its_step():
    compared = {case[0] if type(case) is tuple else case.values[0] for case in EXACT}
    assert compared | {"sgd", "adafactor", "muon"} == {*KINDS}
