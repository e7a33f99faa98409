from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import DistributedType
from accelerate.utils import InitProcessGroupKwargs

from dataflex.config import load_config
from dataflex.config.fsdp import FsdpSettings
from dataflex.curriculum.schedule import Schedule
from dataflex.errors import ConfigError, TrainingError
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_model
from dataflex.training import optimization, preflight
from dataflex.training.arguments import TrainingArguments
from dataflex.training.fsdp import fsdp_settings
from dataflex.training.optimization import create_accelerator
from dataflex.training.run import training_arguments
from dataflex.training.steppers import stepper_class
from dataflex.training.steps import Stepper
from dataflex.utils.distributed import Ranks
from helpers.runs import tiny_trainer
from helpers.scripts import ROOT

ZERO_2 = {"zero_optimization": {"stage": 2}}


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_what_shards_parameters_is_refused(
    kind: DistributedType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimization, "Accelerator", lambda **given: SimpleNamespace(distributed_type=kind))
    with pytest.raises(TrainingError, match="is not supported yet: every process has to hold all parameters"):
        create_accelerator(TrainingArguments(output_dir=tmp_path))


def test_the_timeout_reaches_the_process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    made = SimpleNamespace(distributed_type=DistributedType.NO, num_processes=1)
    monkeypatch.setattr(optimization, "Accelerator", lambda **settings: given.update(settings) or made)
    create_accelerator(TrainingArguments(output_dir=tmp_path, ddp_timeout=180_000_000))
    timeouts = [handler.timeout for handler in given["kwargs_handlers"] if isinstance(handler, InitProcessGroupKwargs)]
    assert timeouts == [timedelta(seconds=180_000_000)]


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_examples_of_deepspeed_reach_the_trainer(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    file = f"examples/deepspeed/ds_z{stage}_config.json"
    config = load_config("examples/train_lora/cpu/random.yaml", [f"deepspeed={file}"])
    assert (training_arguments(config).deepspeed or {})["zero_optimization"] == {"stage": stage}


@pytest.mark.parametrize("settings", [{}, {"zero_optimization": {"stage": 0}}])
def test_stage_0_is_plain_data_parallelism(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    args = TrainingArguments(output_dir=tmp_path, deepspeed=settings)
    assert list(preflight.sharding_problems(args, 2)) == []
    assert stepper_class(args, Ranks(0, 2), tiny_model()) is Stepper


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimization": {"stage": "two"}}, "expected 0, 1, 2 or 3, got 'two'"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "mics_shard_size: 2 is not supported"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "weights are gathered as they are"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer is not supported",
        ),
        (ZERO_2 | {"optimizer": {"type": "AdamW"}}, "optimizer: the optimizer is AdamW with the run's own keys"),
        (ZERO_2 | {"scheduler": {}}, "scheduler: the schedule is the run's own"),
        (ZERO_2 | {"bf16": {"enabled": True}}, "bf16.enabled: the run's own key bf16 decides"),
    ],
)
def test_settings_that_cannot_be_run_say_what_to_do(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainingArguments(output_dir=tmp_path, deepspeed=settings)


def test_all_problems_of_the_settings_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainingArguments(output_dir=tmp_path, deepspeed={"zero_optimization": {"stage": 4}, "optimizer": {}})
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("stage", [2, 3])
def test_a_single_process_has_nothing_to_shard(stage: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"zero_optimization": {"stage": stage}}
    trainer = tiny_trainer(tmp_path, selector=RandomSelector(), schedule=Schedule(1), deepspeed=settings)
    assert trainer.train()["steps"] == 1
    assert caplog.text.count("deepspeed: has no effect in a single process") == 1


def test_stage_3_needs_no_deepspeed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    caplog.set_level("INFO")
    args = TrainingArguments(output_dir=tmp_path, optim="sgd", deepspeed={"zero_optimization": {"stage": 3}})
    assert list(preflight.sharding_problems(args, 2)) == []
    assert fsdp_settings(args) == FsdpSettings()
    assert "without DeepSpeed" in caplog.text


def test_a_missing_package_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    args = TrainingArguments(output_dir=tmp_path, deepspeed=ZERO_2)
    assert list(preflight.sharding_problems(args, 1)) == []
    [problem] = preflight.sharding_problems(args, 2)
    assert "deepspeed is not installed" in problem


def test_arguments_that_never_act_are_named_when_training_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_trainer(
        tmp_path,
        selector=RandomSelector(),
        schedule=Schedule(2),
        eval_strategy="steps",
        eval_steps=1,
        early_stopping_steps=1,
        save_steps=9,
    ).train()
    assert "save_steps: 9 is beyond the run (2 steps): no checkpoint before its end" in caplog.text
    assert "early_stopping_steps: early stopping cannot fire: 1 evaluations" in caplog.text
