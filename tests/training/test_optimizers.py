"""Runs with other optimizers than AdamW: what they step, what a checkpoint keeps, and what is refused before them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import dataflex as df
from dataflex.config import load_config
from dataflex.curriculum.schedule import Schedule
from dataflex.errors import ConfigError, GradientError, TrainingError
from dataflex.gradients.moments import adam_moments, learning_rates
from dataflex.models.model import trainable_parameters
from dataflex.models.optimizers import KINDS, describe, name_of, restore
from dataflex.selectors.less import LessSelector
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_lora, tiny_model
from dataflex.training.arguments import TrainingArguments
from dataflex.training.checkpoint import load_optimizer, read_state
from dataflex.training.optimization import create_optimizer
from helpers.runs import tiny_arguments, tiny_trainer
from helpers.scripts import ROOT

quantised = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes (extra quant)")
paged = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
RUNS: list[Any] = [
    ("adamw_torch_fused", {}),
    ("adamw_torch", {"loraplus_lr_ratio": 16.0}),
    pytest.param("adamw_8bit", {"loraplus_lr_ratio": 4.0}, marks=quantised),
    pytest.param("paged_adamw_8bit", {}, marks=[quantised, paged]),
    ("adafactor", {}),
    ("sgd", {"loraplus_lr_ratio": 4.0}),
    ("muon", {}),
]


def model() -> Any:
    """An adapter with matrices large enough for 8-bit states."""
    return tiny_lora(tiny_model(), r=256)


def trainer(folder: Path, optim: str, **changes: Any) -> df.Trainer:
    moments = optim not in ("sgd", "muon")
    selector = LessSelector(gradient_type="adam" if moments else "sgd")
    return tiny_trainer(
        folder, model=model(), selector=selector, schedule=Schedule(2, 2, 1), optim=optim, save_steps=1, **changes
    )


def chosen(folder: Path) -> list[int]:
    table = pq.read_table(folder / "selections" / "step-2.parquet")
    return [
        index for index, taken in zip(*(table[name].to_pylist() for name in ("index", "chosen")), strict=True) if taken
    ]


@pytest.mark.parametrize(("optim", "changes"), RUNS)
def test_a_run_is_resumed_and_selected_from_as_it_was(tmp_path, optim, changes):
    whole = trainer(tmp_path / "whole", optim, **changes)
    whole.train()
    assert type(whole.optimizer) is KINDS[optim].load()
    source = tmp_path / "whole" / "checkpoint-3"
    trainer(tmp_path / "resumed", optim, **changes, resume_from_checkpoint=source).train()
    saved = [tmp_path / name / "adapter_model.safetensors" for name in ("whole", "resumed")]
    assert saved[0].read_bytes() == saved[1].read_bytes()
    found = df.select(
        model(),
        whole.tokenizer,
        whole.train_dataset,
        whole.eval_dataset,
        selector=LessSelector(**whole.component.selector.config.model_dump(exclude_unset=True)),
        num_samples=8,
        checkpoint=tmp_path / "whole" / "checkpoint-2",
        template="chatml",
        seed=3,
    )
    assert sorted(found.indices.tolist()) == chosen(tmp_path / "whole")


@quantised
def test_a_checkpoint_keeps_eight_bits_as_they_are(tmp_path):
    run = trainer(tmp_path, "adamw_8bit")
    run.train()
    fresh = model()
    loaded = load_optimizer(tmp_path / "checkpoint-4", read_state(tmp_path / "checkpoint-4"), fresh)
    own = dict(trainable_parameters(run.model))
    eight = 0
    for name, parameter in trainable_parameters(fresh):
        expected, found = run.optimizer.state[own[name]], loaded.state[parameter]
        assert expected.keys() == found.keys()
        assert all(torch.equal(torch.as_tensor(expected[key]), torch.as_tensor(found[key])) for key in expected)
        assert [type(value) for value in found.values()] == [type(expected[key]) for key in found]
        eight += found["state1"].dtype == torch.uint8
    assert eight > 0


def test_lora_plus_gives_b_its_rate_and_embeddings_theirs(tmp_path):
    tuned = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"))
    args = tiny_arguments(tmp_path, loraplus_lr_ratio=16.0, loraplus_lr_embedding=2e-6, weight_decay=0.1)
    optimizer = create_optimizer(tuned, args)
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in trainable_parameters(tuned):
        kind = 2e-6 if "lora_embedding_B" in name else 1.6e-1 if "lora_B" in name else 1e-2
        assert rates[parameter] == pytest.approx(kind), name
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}
    again = restore(tuned, describe(tuned, optimizer))
    assert learning_rates(tuned, again) == learning_rates(tuned, optimizer) != ()


def test_a_checkpoint_of_0_1_0_is_read(tmp_path):
    run = tiny_trainer(tmp_path, selector=RandomSelector(), schedule=Schedule(2, 0, 0), save_steps=2)
    run.train()
    state = dict(read_state(tmp_path / "checkpoint-2") or {})
    described = state.pop("optimizer")
    old = {**state, "adam": {key: described[key] for key in ("betas", "eps")}}
    fresh = tiny_lora(tiny_model())
    found = adam_moments(fresh, load_optimizer(tmp_path / "checkpoint-2", old, fresh))
    expected = adam_moments(run.model, run.optimizer)
    assert torch.equal(found.exp_avg_sq, expected.exp_avg_sq)
    assert found.settings == expected.settings


@pytest.mark.parametrize("optim", ["sgd", "muon"])
def test_normalising_without_moments_is_refused_before_training(tmp_path, optim):
    run = tiny_trainer(tmp_path, optim=optim)
    with pytest.raises(GradientError, match=r"(?s)got (SGD|Muon).*gradient_type: sgd"):
        run.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_muon_wants_matrices(tmp_path):
    with pytest.raises(TrainingError, match=r"optim: muon steps matrices alone; 5 of the trained parameters are none"):
        create_optimizer(tiny_model(), tiny_arguments(tmp_path, optim="muon"))


def test_what_is_not_installed_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("dataflex.models.optimizers.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"(?s)bitsandbytes, which is not installed.*dataflex-sdk\[quant\]"):
        create_optimizer(model(), tiny_arguments(tmp_path, optim="adamw_8bit"))
    assert name_of(torch.optim.SGD([nn.Parameter(torch.ones(1))])) == "sgd"
    with pytest.raises(TrainingError, match="the state of NAdam cannot be saved, expected one of adamw_torch"):
        name_of(torch.optim.NAdam([nn.Parameter(torch.ones(1))]))


def test_names_are_those_of_transformers(tmp_path):
    assert tiny_arguments(tmp_path, optim="adamw_bnb_8bit").optim == "adamw_8bit"
    assert tiny_arguments(tmp_path, optim="paged_adamw").optim == "paged_adamw_32bit"
    with pytest.raises(ConfigError, match=r"optim.*'lion_8bit'|optim.*expected"):
        tiny_arguments(tmp_path, optim="lion_8bit")
    with pytest.raises(ConfigError, match=r"deepspeed shards the moments of torch's AdamW .* got adafactor"):
        TrainingArguments(output_dir=tmp_path, optim="adafactor", deepspeed={"zero_optimization": {"stage": 2}})


def test_keys_of_a_file(monkeypatch):
    monkeypatch.chdir(ROOT)
    file = "examples/train_lora/cpu/random.yaml"
    config = load_config(file, ["optim=adafactor", "adam_beta2=0.99", "loraplus_lr_embedding=1e-5"])
    assert config.optim == "adafactor"
    assert [line.split(": ", 1)[1] for line in config.warnings()] == [
        "adam_beta2: has no effect with optim adafactor",
        "loraplus_lr_embedding: has no effect without loraplus_lr_ratio",
    ]
    with pytest.raises(ConfigError, match="deepspeed shards the moments"):
        load_config(file, ["optim=sgd", "deepspeed=examples/deepspeed/ds_z2_config.json"])
