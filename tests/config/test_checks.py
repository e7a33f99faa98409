from __future__ import annotations

from typing import Any

import pytest

from dataflex.config import RunConfig, load_config
from dataflex.config.checks import planned_evaluations, planned_steps
from dataflex.errors import ConfigError

REQUIRED: dict[str, Any] = {"model_name_or_path": "owner/model", "dataset": ["rows"], "output_dir": "out"}
SELECTION: dict[str, Any] = {
    "train_type": "dynamic_select",
    "component_name": "random",
    "warmup_step": 10,
    "update_step": 10,
    "update_times": 2,
    "num_train_epochs": 1.0,
    "logging_steps": 10,
    "save_steps": 10,
}


def warnings(**values: Any) -> list[str]:
    return RunConfig(**REQUIRED | values).warnings()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"bf16": True, "fp16": True}, "fp16: fp16 and bf16 exclude each other; keep one"),
        ({"do_train": False}, "do_train: false leaves a run nothing to do; remove the key or set it to true"),
        ({"val_size": 2.5}, "val_size: expected a share below 1 or a whole number of rows, got 2.5"),
        (
            {"val_size": 0.1, "eval_dataset": "e"},
            "val_size: val_size and eval_dataset exclude each other; keep one",
        ),
        ({"eval_strategy": "epoch"}, "eval_strategy: epoch needs eval_dataset or val_size"),
        (
            {"load_best_model_at_end": True, "val_size": 0.1},
            "load_best_model_at_end: the best model is only known if eval_strategy is steps or epoch",
        ),
        (
            {"early_stopping_steps": 1, "val_size": 0.1},
            "early_stopping_steps: early stopping cannot fire unless eval_strategy is steps or epoch",
        ),
        (
            {"metric_for_best_model": "bleu"},
            "metric_for_best_model: 'eval_bleu' is not evaluated; eval_metric adds a metric, here there is eval_loss",
        ),
        (
            SELECTION | {"component_name": None},
            "component_name: train_type dynamic_select needs the name of a selector",
        ),
        (SELECTION | {"update_step": 0}, "update_step: train_type dynamic_select needs at least 1, got 0"),
        (SELECTION | {"update_times": 0}, "update_times: train_type dynamic_select needs at least 1, got 0"),
    ],
)
def test_contradictions(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig(**REQUIRED | values)
    assert caught.value.problems == [problem]


def test_static_training_needs_no_selection_keys() -> None:
    assert RunConfig(**REQUIRED).planned_steps is None
    assert warnings() == []


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 30), (3.0, 90), (0.1, 3), (0.05, 2), (1 / 3, 10), (29 / 30, 29)])
def test_planned_steps_are_the_ceiling(epochs: float, steps: int) -> None:
    config = RunConfig(**REQUIRED | SELECTION | {"num_train_epochs": epochs})
    assert planned_steps(config) == steps


@pytest.mark.parametrize(
    ("values", "evaluations"),
    [
        ({}, 0),
        ({"eval_strategy": "steps", "eval_steps": 10}, 3),
        ({"eval_strategy": "steps", "eval_steps": 12}, 3),
        ({"eval_strategy": "epoch", "num_train_epochs": 1.5}, 2),
        ({"eval_strategy": "steps", "train_type": "static"}, None),
    ],
)
def test_planned_evaluations(values: dict[str, Any], evaluations: int | None) -> None:
    config = RunConfig(**REQUIRED | SELECTION | {"val_size": 0.1} | values)
    assert planned_evaluations(config) == evaluations


@pytest.mark.parametrize(
    ("values", "start"),
    [
        ({"save_steps": 31}, "save_steps: 31 is beyond the run (30 steps)"),
        ({"logging_steps": 31}, "logging_steps: 31 is beyond the run (30 steps)"),
        ({"eval_strategy": "steps", "val_size": 0.1, "eval_steps": 31}, "eval_steps: 31 is beyond the run (30 steps)"),
        (
            {"eval_strategy": "steps", "val_size": 0.1, "eval_steps": 10, "early_stopping_steps": 3},
            "early_stopping_steps: early stopping cannot fire: 3 evaluations",
        ),
        (
            {"eval_strategy": "steps", "val_size": 0.1, "eval_steps": 10, "early_stopping_steps": 2},
            "early_stopping_steps: early stopping cannot fire: 2 evaluations without improvement come after a first "
            "one, and the run has 2 before its last step",
        ),
        (
            {"eval_strategy": "steps", "val_size": 0.1, "eval_steps": 30, "load_best_model_at_end": True},
            "load_best_model_at_end: the run evaluates once, at its end: its last model is its best",
        ),
        (
            {"eval_strategy": "steps", "val_size": 0.1, "eval_steps": 10, "eval_metric": "exact_match"}
            | {"metric_for_best_model": "exact_match", "greater_is_better": False},
            "greater_is_better: false with eval_exact_match takes the model with the worst answers",
        ),
        ({"eval_metric": "exact_match"}, "eval_metric: has no effect on training with eval_strategy no"),
        ({"eval_max_new_tokens": 9}, "eval_max_new_tokens: has no effect without eval_metric"),
        ({"num_train_epochs": 0.3, "save_steps": 5, "logging_steps": 5}, "warmup_step: the run ends before its first"),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, "warmup_ratio: has no effect with lr_scheduler_type"),
        ({"run_name": "mine"}, "run_name: has no effect: report_to names no tracker"),
        (
            {"use_swanlab": True, "swanlab_lark_secret": "LARK_SECRET"},
            "swanlab_lark_secret: has no effect without swanlab_lark_webhook_url",
        ),
        (
            {"resume_from_checkpoint": True, "overwrite_output_dir": True},
            "overwrite_output_dir: has no effect: resume_from_checkpoint goes on",
        ),
        ({"early_stopping_min_delta": 0.1}, "early_stopping_min_delta: has no effect without early_stopping_steps"),
        ({"greater_is_better": True}, "greater_is_better: true with eval_loss takes the model with the highest loss"),
        ({"eval_steps": 5}, "eval_steps: has no effect with eval_strategy no"),
        ({"swanlab_project": "mine"}, "swanlab_project: has no effect: swanlab is not in report_to"),
        (
            {"save_only_model": True, "resume_from_checkpoint": True},
            "save_only_model: checkpoints of this run hold the model only",
        ),
        ({"components_cfg_file": "src/dataflex/configs/components.yaml"}, "components_cfg_file: src/dataflex/configs"),
    ],
)
def test_settings_that_cannot_act_are_warned_about(
    values: dict[str, Any], start: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [warning] = warnings(**SELECTION | values)
    assert warning.startswith(start)


def test_a_run_without_a_selection_is_not_promised_the_checkpoint_before_it() -> None:
    found = warnings(**SELECTION | {"num_train_epochs": 0.3, "save_steps": 50, "logging_steps": 5})
    assert "save_steps: 50 is beyond the run (9 steps): no checkpoint before its end" in found


def test_selection_keys_have_no_effect_on_static_training() -> None:
    found = warnings(**SELECTION | {"train_type": "static"})
    keys = ["component_name", "warmup_step", "update_step", "update_times"]
    assert found == [f"{key}: has no effect with train_type static" for key in keys]


def test_four_evaluations_are_enough_for_a_patience_of_three() -> None:
    evaluated = {"eval_strategy": "steps", "val_size": 0.1, "eval_steps": 7, "early_stopping_steps": 3}
    assert warnings(**SELECTION | evaluated) == []


@pytest.mark.parametrize(
    ("values", "trackers"),
    [
        ({}, []),
        ({"use_swanlab": True}, ["swanlab"]),
        ({"report_to": "wandb", "use_swanlab": True}, ["wandb", "swanlab"]),
        ({"report_to": ["swanlab"], "use_swanlab": True}, ["swanlab"]),
    ],
)
def test_use_swanlab_adds_a_tracker(values: dict[str, Any], trackers: list[str]) -> None:
    assert RunConfig(**REQUIRED | values).trackers == trackers


@pytest.mark.parametrize(
    ("values", "greater"),
    [({}, False), ({"eval_metric": "exact_match", "metric_for_best_model": "eval_exact_match"}, True)],
)
def test_more_is_better_unless_it_is_a_loss(values: dict[str, Any], greater: bool) -> None:
    assert RunConfig(**REQUIRED | values).greater_is_better is greater


@pytest.mark.parametrize(
    ("written", "params"),
    [
        (None, None),
        ("none", None),
        ("rouge_l", {"metric": "rouge_l"}),
        ({"metric": "numeric", "rel_tol": 0.1}, {"metric": "numeric", "rel_tol": 0.1}),
        ([{"metric": "token_f1"}], {"metric": [{"metric": "token_f1"}]}),
    ],
)
def test_a_metric_is_a_name_a_list_or_parameters(written: Any, params: Any) -> None:
    assert RunConfig(**REQUIRED | {"eval_metric": written}).eval_metric == params


def test_parameters_of_the_metric_are_checked_when_the_file_is_read() -> None:
    given = {**REQUIRED, "eval_metric": {"metric": "exact_mach"}, "eval_strategy": "steps", "val_size": 0.1}
    with pytest.raises(ConfigError, match=r"eval_metric: .*unknown metric.*did you mean 'exact_match'"):
        load_config(given)
    with pytest.raises(
        ConfigError, match="expected a metric, a list of metrics or a mapping with the key metric, got 3"
    ):
        load_config({**REQUIRED, "eval_metric": 3})
