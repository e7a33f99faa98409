from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dataflex.config import RunConfig, load_config, load_export_config
from dataflex.config.known import ADVICE, LLAMA_FACTORY_KEYS, QUANTIZATION, RENAMED
from dataflex.errors import ConfigError

REQUIRED = {"model_name_or_path": "owner/model", "dataset": "rows", "output_dir": "out"}
HEAD = "".join(f"{key}: {value}\n" for key, value in REQUIRED.items())


def load(folder: Path, text: str, *overrides: str) -> RunConfig:
    """Load ``text`` as the lines of run.yaml after the three required keys (so it starts at line 4)."""
    file = folder / "run.yaml"
    file.write_text(HEAD + text, encoding="utf-8")
    return load_config(file, overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    """The problems of ``text``, with run.yaml for its path."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return [line.replace(str(folder / "run.yaml"), "run.yaml") for line in caught.value.problems]


def test_defaults_are_those_of_llama_factory() -> None:
    config = load_config(REQUIRED)
    expected = {
        "lora_rank": 8,
        "lora_alpha": 16,
        "cutoff_len": 2048,
        "learning_rate": 5e-5,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3.0,
        "lr_scheduler_type": "linear",
        "save_steps": 500,
        "eval_steps": 500,
        "ddp_timeout": 1800,
        "train_type": "static",
    }
    assert {key: getattr(config, key) for key in expected} == expected


def test_every_field_is_documented() -> None:
    assert [key for key, info in RunConfig.model_fields.items() if not info.description] == []


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning_rate: 1.0e-4", "learning_rate", 1e-4),
        ("learning_rate: '1e-4'", "learning_rate", 1e-4),
        ("max_samples: 1e3", "max_samples", 1000),
        ("num_train_epochs: 2", "num_train_epochs", 2.0),
        ("ddp_timeout: false", "ddp_timeout", 1800),
        ("ddp_timeout: 180000000", "ddp_timeout", 180_000_000),
        ("eval_strategy: no", "eval_strategy", "no"),
        ("eval_strategy: null", "eval_strategy", "no"),
        ("report_to: none", "report_to", []),
        ("report_to: no", "report_to", []),
        ("report_to:", "report_to", []),
        ("report_to: wandb", "report_to", ["wandb"]),
        ("report_to: wandb, tensorboard", "report_to", ["wandb", "tensorboard"]),
        ("report_to: [mlflow, none, mlflow]", "report_to", ["mlflow"]),
        ("lora_target: all", "lora_target", "all"),
        ("lora_target: [all]", "lora_target", "all"),
        ("lora_target: q_proj,v_proj", "lora_target", ["q_proj", "v_proj"]),
        ("lora_target: [q_proj, v_proj]", "lora_target", ["q_proj", "v_proj"]),
        ("lora_alpha: null", "lora_alpha", 16),
        ("lora_rank: 4", "lora_alpha", 8),
        ("eval_dataset: a, b", "eval_dataset", ["a", "b"]),
        ("eval_dataset: [a, b]", "eval_dataset", ["a", "b"]),
        ("resume_from_checkpoint: null", "resume_from_checkpoint", False),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", True),
        ("resume_from_checkpoint: out/checkpoint-3", "resume_from_checkpoint", "out/checkpoint-3"),
        ("metric_for_best_model: loss", "metric_for_best_model", "eval_loss"),
        ("deepspeed: false", "deepspeed", None),
        ("logging_steps: 7", "eval_steps", 7),
        ("swanlab_run_name: 2024-01-31", "swanlab_run_name", "2024-01-31"),
        ("swanlab_api_key: SWANLAB_API_KEY", "swanlab_api_key", "SWANLAB_API_KEY"),
    ],
)
def test_values_that_people_write(tmp_path: Path, text: str, key: str, value: Any) -> None:
    found = getattr(load(tmp_path, text), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lora_rank: sixteen", "lora_rank: expected an integer, got 'sixteen'"),
        ("lora_rank: 1.5", "lora_rank: expected an integer, got 1.5"),
        ("lora_rank: true", "lora_rank: expected an integer, got True"),
        ("lora_rank: 0", "lora_rank: expected at least 1, got 0"),
        ("lora_alpha: 0", "lora_alpha: expected at least 1, got 0"),
        ("learning_rate: fast", "learning_rate: expected a number, got 'fast'"),
        ("learning_rate: .inf", "learning_rate: expected a finite number, got inf"),
        ("warmup_ratio: 1", "warmup_ratio: expected less than 1.0, got 1"),
        ("bf16: 1", "bf16: expected true or false, got 1"),
        ("bf16: 'yes'", "bf16: expected true or false, got 'yes'"),
        ("eval_dataset: 5", "eval_dataset: expected a name or a list of names, got 5"),
        ("template: 5", "template: expected text, got 5"),
        ("template: ''", "template: expected text that is not empty, got ''"),
        ("eval_dataset: []", "eval_dataset: expected a name or a list of names, got []"),
        ("lr_scheduler_type: cosin", "did you mean 'cosine'?"),
        ("report_to: [wandb, tensorbord]", "got 'tensorbord'; did you mean 'tensorboard'?"),
        ("report_to: 3", "report_to: expected none or names of trackers, got 3"),
        ("lora_target: [all, q_proj]", "lora_target: 'all' stands alone"),
        ("lora_target: []", "lora_target: expected all, or names of modules, got []"),
        ("resume_from_checkpoint: 3", "resume_from_checkpoint: expected true, false or the path of a checkpoint"),
        ("components_cfg_file: true", "components_cfg_file: expected the path of a file, null or false, got True"),
        ("component_params: [a]", "component_params: expected a mapping, got ['a']"),
        ("seed: 4294967296", "seed: expected less than 4294967296"),
        ("stage: dpo", "stage: 'dpo' is not supported (yet); supported: sft"),
        ("finetuning_type: oft", "finetuning_type: 'oft' is not supported (yet); supported: lora, full, freeze"),
        (
            "train_type: dynamic_weighting",
            "'dynamic_weighting' is not supported (yet); supported: static, dynamic_select, dynamic_mix, dynamic_w",
        ),
        ("deepspeed: ds_z3.json", "deepspeed: 'ds_z3.json' does not exist"),
        (
            "deepspeed: {zero_optimization: {stage: 4}}",
            "deepspeed: zero_optimization.stage: expected 0, 1, 2 or 3, got 4",
        ),
    ],
)
def test_values_that_are_refused(tmp_path: Path, text: str, problem: str) -> None:
    [found] = problems(tmp_path, text)
    assert found.startswith("run.yaml:4: ")
    assert problem in found


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("datset", "dataset"),
        ("lora_rnak", "lora_rank"),
        ("lr", "learning_rate"),
        ("evaluation_strategy", "eval_strategy"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest(tmp_path: Path, key: str, suggestion: str) -> None:
    assert problems(tmp_path, f"{key}: 1") == [f"run.yaml:4: unknown key {key!r}; did you mean {suggestion!r}?"]


def test_a_key_that_resembles_nothing_gets_no_suggestion(tmp_path: Path) -> None:
    assert problems(tmp_path, "zzzzzz: 1") == ["run.yaml:4: unknown key 'zzzzzz'"]


def test_suggestions_and_advice_name_real_keys() -> None:
    assert set(RENAMED.values()) <= set(RunConfig.model_fields)
    assert set(ADVICE) | set(QUANTIZATION) <= LLAMA_FACTORY_KEYS
    assert not LLAMA_FACTORY_KEYS & set(RunConfig.model_fields)


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "lora_rank: x\nbf16: true\nfp16: true\ntrain_type: dynamic_select\nlora_rank: 3\ndatset: y\n1: 2\n"
    assert problems(tmp_path, text, "warmup_ratio=2", "nonsense") == [
        "run.yaml:4: lora_rank: expected an integer, got 'x'",
        "run.yaml:6: fp16: fp16 and bf16 exclude each other; keep one",
        "run.yaml:8: 'lora_rank' is set twice (first at line 4)",
        "run.yaml:9: unknown key 'datset'; did you mean 'dataset'?",
        "run.yaml:10: the key 1 is not text; put it in quotes",
        "override 'nonsense': expected key=value",
        "override warmup_ratio=2: warmup_ratio: expected less than 1.0, got 2",
        "run.yaml: update_step: train_type dynamic_select needs at least 1, got 0",
        "run.yaml: component_name: train_type dynamic_select needs the name of a selector",
    ]


def test_missing_keys_are_named(tmp_path: Path) -> None:
    file = tmp_path / "empty.yaml"
    file.write_text("# nothing yet\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert caught.value.problems == [f"{file}: {key} is required" for key in REQUIRED]


def test_a_known_key_of_llama_factory_warns_by_name(tmp_path: Path) -> None:
    config = load(tmp_path, "flash_attn: fa2\nwarmup_steps: 5\n")
    flash, warmup = config.warnings()
    assert flash.endswith("run.yaml:4: flash_attn: dataflex does not act on this LLaMA-Factory key")
    assert "run.yaml:5: warmup_steps: " in warmup
    assert "warmup_ratio" in warmup


def test_a_quantised_model_spread_over_devices_is_refused(tmp_path: Path) -> None:
    refusal = (
        "a quantised model spread over devices is not supported; remove the key, to go on with the weights as they are"
    )
    assert problems(tmp_path, "quantization_bit: 4\n", "quantization_device_map=auto") == [
        f"override quantization_device_map=auto: quantization_device_map: {refusal}",
    ]


def test_keys_that_ask_for_no_quantisation_are_accepted(tmp_path: Path) -> None:
    config = load(tmp_path, "quantization_bit: null\ndouble_quantization: true\nexport_quantization_bit: 4\n")
    assert len(config.warnings()) == 1


def test_a_quantised_export_is_refused() -> None:
    values = {"model_name_or_path": "m", "export_dir": "e", "export_quantization_bit": 4}
    with pytest.raises(ConfigError, match="export_quantization_bit: an export of quantised weights is not supported"):
        load_export_config(values)


@pytest.mark.parametrize(
    "text",
    [
        "swanlab_api_key: sk-verysecret1",
        "swanlab_api_key: qwErtY123456",
        "swanlab_api_key: (redacted)",
        "swanlab_lark_secret: [sk-verysecret1]",
        "swanlab_lark_webhook_url: https://open.example.com/hook/verysecret1",
        "hf_hub_token: hf_verysecret1",
        "component_params: {backend: {api_key: sk-verysecret1}}",
        "component_params: {list: [{hub_token: 1}]}",
    ],
)
def test_a_literal_secret_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    [found] = problems(tmp_path, text)
    assert "put it in the environment" in found
    assert "verysecret1" not in found
    assert "qwErtY" not in found


def test_no_message_repeats_a_secret(tmp_path: Path) -> None:
    text = "template: [sk-verysecret1]\nlr_scheduler_type: sk-verysecret1\n"
    overrides = ["swanlab_api_key=sk-verysecret1", "component_params.api_key=plainsecret"]
    lines = "\n".join(problems(tmp_path, text, *overrides))
    assert "secret1" not in lines
    assert "plainsecret" not in lines
    assert "override swanlab_api_key=(redacted): swanlab_api_key: expected the name" in lines
    with pytest.raises(ValidationError) as caught:
        RunConfig(**REQUIRED, swanlab_api_key="sk-verysecret1")
    assert "secret1" not in str(caught.value)


def test_overrides_replace_keys_of_the_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "lora_rank: wrong\nbf16: false\n",
        "lora_rank=4",
        "bf16=true",
        "learning_rate=1e-3",
        "template=",
        "report_to=[wandb, mlflow]",
    )
    assert (config.lora_rank, config.bf16, config.learning_rate) == (4, True, 1e-3)
    assert (config.template, config.report_to) == (None, ["wandb", "mlflow"])


def test_overrides_reach_into_component_params(tmp_path: Path) -> None:
    text = "component_params: {a: {b: 1, c: 2}, d: 3}\n"
    config = load(tmp_path, text, "component_params.a.b=5", "component_params.e.f=[1]", "component_params.d.x=0")
    assert config.component_params == {"a": {"b": 5, "c": 2}, "d": {"x": 0}, "e": {"f": [1]}}


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("lora_rank", "override 'lora_rank': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("lora_rnak=3", "override lora_rnak=3: unknown key 'lora_rnak'; did you mean 'lora_rank'?"),
        ("lora.rank=3", "override lora.rank=3: unknown key 'lora.rank'; did you mean 'lora_rank'?"),
        ("lora_rank=x", "override lora_rank=x: lora_rank: expected an integer, got 'x'"),
        ("template=[a", "override template=[a: not valid YAML"),
    ],
)
def test_problems_of_overrides_name_the_override(tmp_path: Path, override: str, problem: str) -> None:
    [found] = problems(tmp_path, "", override)
    assert found.startswith(problem)


def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is a folder, expected a file"):
        load_config(tmp_path)
    file = tmp_path / "binary.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(file)


def test_a_mapping_is_accepted_in_place_of_a_file() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({**REQUIRED, "lora_rank": "x", "datset": 1})
    assert caught.value.problems == [
        "unknown key 'datset'; did you mean 'dataset'?",
        "lora_rank: expected an integer, got 'x'",
    ]


def test_a_mapping_is_left_as_it_is() -> None:
    source = {**REQUIRED, "component_params": {"a": {"b": 1}}}
    config = load_config(source, ["component_params.a.b=2"])
    assert config.component_params == {"a": {"b": 2}}
    assert source["component_params"] == {"a": {"b": 1}}


def test_a_model_that_can_only_be_a_path_must_exist(tmp_path: Path) -> None:
    [found] = problems(tmp_path, "adapter_name_or_path: ./adapter\n")
    assert found.startswith("run.yaml:4: adapter_name_or_path: './adapter' does not exist")
    (tmp_path / "adapter").mkdir()
    config = load(tmp_path, "adapter_name_or_path: ./adapter\n")
    assert config.locate("./adapter") == str(tmp_path / "adapter")


KEYS = st.sampled_from([*RunConfig.model_fields, "lr", "flash_attn", "hub_token", "<<", "x", "1", "~"])
TRAPS = (
    *("", "null", "true", "no", "1e400", "2001-99-99", "0b", "1:99", ".nan", "sk-abcdefghij", "0x" + "f" * 9000),
    *(
        "&",
        "*",
        "'",
        "[,]",
        "-",
        "?",
        "|\n x",
        "&a [*a]",
        "{a: 1}",
        "{a: {b: [1, 2]}}",
        "!!binary a",
        "!!python/name:os x",
    ),
    *("dynamic_select", "nice", "src/dataflex/configs/components.yaml"),
)
SCALARS = st.one_of(
    st.text(max_size=8),
    st.integers(),
    st.floats(),
    st.sampled_from(TRAPS),
)
LINES = st.lists(st.tuples(KEYS, SCALARS).map(lambda pair: f"{pair[0]}: {pair[1]}\n"), max_size=8)


def load_or_refuse(source: Any, *overrides: str) -> None:
    """Load a configuration; nothing but a ConfigError with problems may come out of it."""
    try:
        config = load_config(source, overrides)
    except ConfigError as error:
        found: list[str] = error.problems
    else:
        found = ["valid", *config.warnings()]
    assert found


@given(text=st.one_of(st.text(), LINES.map(lambda lines: HEAD + "".join(lines))))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gives_a_configuration_or_a_config_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "fuzz.yaml"
    file.write_text(text, encoding="utf-8", errors="replace", newline="")
    load_or_refuse(file)


@given(data=st.binary())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_config_error(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "fuzz.yaml"
    file.write_bytes(data)
    load_or_refuse(file)


@given(override=st.one_of(st.text(), st.tuples(KEYS, SCALARS).map(lambda pair: f"{pair[0]}={pair[1]}")))
@settings(deadline=None)
def test_any_override_gives_a_configuration_or_a_config_error(override: str) -> None:
    load_or_refuse(REQUIRED, override)
