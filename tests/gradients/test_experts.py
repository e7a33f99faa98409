"""Mixtures of experts, whose weights are one parameter of three dimensions a layer: trained whole, and with LoRA."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from dataflex.cli import cli
from dataflex.data.collate import collate
from dataflex.errors import ModelError
from dataflex.gradients.collectors import WholeRows
from dataflex.gradients.exact import cosines_of, exact_sums, exact_targets
from dataflex.gradients.experts import experts
from dataflex.gradients.features import GradientFeatures
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import policy_gradient
from dataflex.gradients.policy import PolicyFeatures, WeightedPrompt
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.losses import mean_losses
from dataflex.models.model import add_lora, recomputing, recomputing_layers, trainable_parameters, undisturbed
from dataflex.models.trainable import train_layers
from dataflex.projection.projector import Projector
from dataflex.testing import stepped_optimizer, tiny_context, tiny_dataset, tiny_project
from helpers.architectures import configuration
from helpers.whole import one_by_one, relative_errors, streamed, streamed_batch

FAMILIES = ["mixtral", "qwen3_moe"]
TRAIN, TARGETS = tiny_dataset(7, seed=2), tiny_dataset(4, seed=100)
PROMPTS = [
    WeightedPrompt(0, [5, 9, 23, 40], [[7, 8, 9], [11], [7, 30]], [0.5, -1.0, 2.0]),
    WeightedPrompt(1, [5, 6], [[17, 18, 19, 20, 21], [31]], [1.0, 0.25]),
]
STACKED = ["experts.gate_up_proj", "experts.down_proj"]


def base_of(family: str, **settings: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(configuration(family), experts_implementation="eager", **settings)
        stir(model.parameters())
    return model


def stir(parameters: Any) -> None:
    with torch.no_grad():
        for values in parameters:
            values.add_(torch.randn_like(values) * 0.1)


def adapted(family: str, target: str | list[str], **settings: Any) -> Any:
    torch.manual_seed(1)
    model = add_lora(base_of(family), rank=3, target=target, **settings)
    stir(values for _, values in trainable_parameters(model))
    return model


MODELS = {
    "lora on all": lambda family: adapted(family, "all"),
    "lora on experts alone": lambda family: adapted(family, STACKED, rslora=True),
    "lora on one of two": lambda family: adapted(family, ["q_proj", "experts.down_proj"]),
    "full": base_of,
    "freeze": lambda family: train_layers(base_of(family), 1, modules=["mlp"]),
}


@pytest.fixture(params=[(family, kind) for family in FAMILIES for kind in MODELS], ids=" ".join)
def model(request: pytest.FixtureRequest) -> nn.Module:
    family, kind = request.param
    made: nn.Module = MODELS[kind](family).double().eval()
    return made


def samples(context: Any, dataset: Any = TRAIN, **changes: Any) -> SampleFeatures:
    settings: dict[str, Any] = {"gradient_type": "sgd", "adam_variant": "adamw", "batch_tokens": 10_000} | changes
    return SampleFeatures(context, dataset, Projector(256), **settings)


def whole(features: GradientFeatures, context: Any) -> Tensor:
    """``(n, p)`` raw gradients of all items, computed together."""
    count = sum(values.numel() for _, values in trainable_parameters(context.model))
    with undisturbed(context.model):
        features.prepare()
        return features.collect(range(len(features)), lambda rows: WholeRows(torch.empty(rows, count)))


def test_gradients_of_rows_are_those_of_a_batch_of_one(model, tmp_path, caplog):
    context = tiny_context(tmp_path, model=model, optimizer=None, train_dataset=TRAIN)
    found = whole(samples(context), context)
    expected = one_by_one(model, list(TRAIN))
    assert max(relative_errors(found, expected)) < 1e-6
    assert not caplog.records  # batched, nothing to announce
    start = 0
    for name, values in trainable_parameters(model):  # each parameter by itself, however small
        own = slice(start, start := start + values.numel())
        assert max(relative_errors(found[:, own] + 0, expected[:, own])) < 1e-5, name


def test_policy_gradients_are_those_of_one_prompt(model, tmp_path, caplog):
    context = tiny_context(tmp_path, model=model, optimizer=None)
    features = PolicyFeatures(context, PROMPTS, Projector(256), temperature=0.7, batch_tokens=10_000)
    expected = [
        policy_gradient(model, p.prompt_ids, p.answers, p.weights, temperature=0.7, autocast=nullcontext)
        for p in PROMPTS
    ]
    assert max(relative_errors(whole(features, context), torch.stack(expected))) < 1e-6
    assert not caplog.records


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora on all", "full"])
def test_exact_scores_are_cosines_of_whole_gradients(family, kind, tmp_path):
    model = MODELS[kind](family).eval()
    optimizer = stepped_optimizer(model, 2)
    context = tiny_context(tmp_path, model=model, optimizer=optimizer, train_dataset=TRAIN, eval_dataset=TARGETS)
    targets = exact_targets(context, samples(context, TARGETS), [[1.0]] * 4, [0] * 4, seed=1, description="t")
    candidates = samples(context, gradient_type="adam")
    sums = exact_sums(context, candidates, targets, tmp_path / "s", {}, save_rows=4, description="c")
    double, moments = copy.deepcopy(model).double(), adam_moments(model, optimizer)
    (b1, b2), t = moments.betas, moments.step + 1
    g, wanted = one_by_one(double, list(TRAIN)), one_by_one(double, list(TARGETS))
    mean, square = b1 * moments.exp_avg.double() + (1 - b1) * g, b2 * moments.exp_avg_sq.double() + (1 - b2) * g * g
    u = mean / (1 - b1**t) / ((square / (1 - b2**t)).sqrt() + moments.eps)
    unit, goals = (values / values.norm(dim=1, keepdim=True) for values in (u, wanted))
    expected = (unit @ goals.mean(dim=0)[:, None]).numpy()
    np.testing.assert_allclose(cosines_of(sums).numpy(), expected, rtol=0, atol=1e-6)


def test_adapters_that_peft_puts_on_parameters_by_itself():
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"], target_parameters=STACKED)
    model = get_peft_model(base_of("qwen2_moe"), config)
    stir(values for _, values in trainable_parameters(model))
    model = model.double().eval()
    found = streamed_batch(model, collate(list(TRAIN), 2))
    assert max(relative_errors(found, one_by_one(model, list(TRAIN)))) < 1e-9


def test_experts_with_biases_and_the_other_orientation():
    model = base_of("gpt_oss").double().eval()
    for name, values in model.named_parameters():
        values.requires_grad_("mlp" in name)
    found = streamed_batch(model, collate(list(TRAIN), 2))
    assert max(relative_errors(found, one_by_one(model, list(TRAIN)))) < 1e-9


def test_checkpointing_recomputes_and_changes_nothing():
    model = adapted("mixtral", "all").double().eval()
    batch = collate(list(TRAIN), 2)
    expected = streamed_batch(model, batch)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = recomputing_layers(model)

    def recomputed() -> Tensor:
        with recomputing(layers):
            assert layers[0].training
            return mean_losses(model, batch)

    with undisturbed(model):
        torch.testing.assert_close(streamed(model, len(batch.input_ids), recomputed), expected)


def test_a_row_without_pairs_of_an_expert_has_no_gradient_of_it():
    module = base_of("mixtral").model.layers[0].mlp.experts
    hidden, gradient = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    index = torch.tensor([[[0, 1]] * 3, [[0, 2]] * 3])
    pieces = experts(module, hidden, index, torch.rand(2, 3, 2), gradient)
    found = pieces["gate_up_proj"](0, 4).flatten(2).abs().sum(dim=2) > 0
    assert found.tolist() == [[True, True, False, False], [True, False, True, False]]


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"dora": True}])
def test_what_lora_on_experts_lacks_is_said(settings):
    with pytest.raises(ModelError, match="means the experts of MixtralForCausalLM, too") as caught:
        add_lora(base_of("mixtral"), **settings)
    assert caught.value.hint.endswith("or without experts, lora_target: k_proj,o_proj,q_proj,v_proj")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "keys",
    [
        {"lora_target": "q_proj, experts.gate_up_proj, experts.down_proj"},
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_trainable_modules": "mlp"},
    ],
    ids=["lora", "freeze"],
)
def test_a_run_of_a_file_selects(family: str, keys: dict[str, Any], tmp_path: Path) -> None:
    file = tiny_project(tmp_path, component_name="less", **keys)
    base_of(family).save_pretrained(tmp_path / "model")
    done = CliRunner().invoke(cli, ["train", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "one sample at a time" not in done.output
    assert "chose 2 times, the last" in done.output
