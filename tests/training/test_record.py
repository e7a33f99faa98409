from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dataflex.config import load_config
from dataflex.curriculum.schedule import Schedule
from dataflex.selectors.less import LessSelector
from dataflex.selectors.nice import NiceSelector
from dataflex.testing import tiny_lora, tiny_model
from dataflex.training.arguments import SwanlabOptions, TrainingArguments
from dataflex.training.component import Component
from dataflex.training.optimization import create_optimizer, create_scheduler
from dataflex.training.record import python_config
from dataflex.training.run import training_arguments


def my_reward(prediction: str, reference: str) -> float:
    return float(prediction == reference)


def test_what_is_known_of_a_run_from_python_makes_a_file_that_names_what_is_missing(tmp_path: Path) -> None:
    model = tiny_lora(tiny_model())
    args = TrainingArguments(
        output_dir=tmp_path / "out", learning_rate=2e-4, swanlab=SwanlabOptions(project="p"), run_name="\u202ename"
    )
    selector = LessSelector(proj_dim=128, gradient_type="sgd")
    text = python_config(args, Schedule(4, 6, 2), Component(selector=selector), model)
    assert "\u202e" not in text
    assert text.startswith("# dataflex run from Python")
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    missing = ["dataset=rows.jsonl", "eval_dataset=rows.jsonl", f"model_name_or_path={tmp_path}"]
    config = load_config(path, missing)
    assert (config.warmup_step, config.update_step, config.update_times) == (4, 6, 2)
    assert (config.learning_rate, config.swanlab_project, config.run_name) == (2e-4, "p", "\u202ename")
    lora = model.peft_config["default"]
    assert (config.lora_rank, config.lora_alpha) == (lora.r, lora.lora_alpha)
    assert sorted(config.lora_target) == sorted(lora.target_modules)
    spec = config.component()
    assert spec.name == "less"
    assert LessSelector.from_params(dict(spec.params)).config == selector.config


@pytest.mark.parametrize("steps", [0, 1, 7, 25])
def test_warm_up_in_steps_is_written_as_a_share_that_gives_the_same_steps(tmp_path: Path, steps: int) -> None:
    def rates(args: TrainingArguments) -> list[float]:
        optimizer = create_optimizer(tiny_model(), args)
        scheduler = create_scheduler(optimizer, args, 25)
        found = []
        for _ in range(25):
            found.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return found

    args = TrainingArguments(output_dir=tmp_path, warmup_steps=steps)
    path = tmp_path / "config.yaml"
    path.write_text(python_config(args, Schedule(25), Component(), tiny_model()), encoding="utf-8")
    config = load_config(path, ["dataset=rows.jsonl", f"model_name_or_path={tmp_path}"])
    assert not [warning for warning in config.warnings() if "warmup_ratio" in warning or "warmup_steps" in warning]
    assert rates(training_arguments(config)) == rates(args)


@pytest.mark.parametrize("reward", [my_reward, lambda prediction, reference: 1.0])
def test_a_function_as_a_parameter_stands_there_by_its_name(tmp_path: Path, reward) -> None:
    args = TrainingArguments(output_dir=tmp_path)
    text = python_config(args, Schedule(1, 1, 1), Component(selector=NiceSelector(reward=reward)), tiny_model())
    found = yaml.safe_load(text)["component_params"]["reward"]
    assert found.endswith(f"{reward.__qualname__} (an object from Python)")
    assert "0x" not in text.split("component_params")[1]


def test_plain_training(tmp_path: Path) -> None:
    found = yaml.safe_load(
        python_config(TrainingArguments(output_dir=tmp_path), Schedule(5), Component(), tiny_model())
    )
    assert (found["train_type"], found["warmup_step"]) == ("static", 5)
    assert not {"component_name", "update_step", "lora_rank", "model_name_or_path"} & set(found)
