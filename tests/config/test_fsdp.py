from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataflex.config import load_config
from dataflex.config.fsdp import FsdpSettings, launched_fsdp, read_fsdp
from dataflex.errors import ConfigError
from dataflex.training.arguments import TrainingArguments
from dataflex.training.run import is_sharded_run, training_arguments
from helpers.scripts import ROOT

EXAMPLE = str(ROOT / "examples" / "train_lora" / "cpu" / "random.yaml")
ZERO_3 = f"deepspeed={ROOT}/examples/deepspeed/ds_z3_config.json"
LAUNCHED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


@pytest.mark.parametrize("off", [None, False, "", []])
def test_without_fsdp_nothing_is_sharded(off: Any) -> None:
    assert read_fsdp(off, None) is None


@pytest.mark.parametrize(
    ("fsdp", "config", "layers"),
    [
        (True, None, None),
        ("full_shard auto_wrap", {"version": 2, "reshard_after_forward": True}, None),
        (["full_shard", "auto_wrap"], {"fsdp_transformer_layer_cls_to_wrap": "GPT2Block"}, ("GPT2Block",)),
        ("full_shard", {"transformer_layer_cls_to_wrap": ["A", "B"], "cpu_offload": False}, ("A", "B")),
    ],
)
def test_the_words_of_transformers_are_read(fsdp: Any, config: Any, layers: Any) -> None:
    assert read_fsdp(fsdp, config) == FsdpSettings(layers)


@pytest.mark.parametrize(
    ("fsdp", "config", "message"),
    [
        ("shard_grad_op", None, "fsdp: 'shard_grad_op' is not supported yet"),
        ("full_shard offload", None, "fsdp: 'offload' is not supported yet"),
        (True, {"reshard_after_forward": False}, "fsdp_config.reshard_after_forward: False is not supported yet"),
        (True, {"fsdp_offload_params": True}, "fsdp_config.offload_params: True is not supported"),
        (True, {"activation_checkpointing": True}, "gradient_checkpointing: true of the run"),
        (True, {"auto_wrap_policy": "SIZE_BASED_WRAP"}, "expected TRANSFORMER_BASED_WRAP"),
        (True, {"version": 3}, "fsdp_config.version: expected 2, got 3"),
        (True, {"layers": ["A"]}, "fsdp_config.layers is unknown; known: activation_checkpointing"),
    ],
)
def test_settings_that_cannot_be_run_are_named(fsdp: Any, config: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_fsdp(fsdp, config)
    with pytest.raises(ConfigError, match=message):
        TrainingArguments(output_dir=tmp_path, fsdp=fsdp, fsdp_config=config)


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        read_fsdp("offload", {"cpu_offload": True, "version": 7})
    assert len(caught.value.problems) == 3


def test_what_accelerate_launch_hands_on_is_read() -> None:
    assert launched_fsdp({"FSDP_VERSION": "2"}) is None
    assert launched_fsdp(LAUNCHED) == FsdpSettings(None)
    named = {**LAUNCHED, "FSDP_TRANSFORMER_CLS_TO_WRAP": "GPT2Block", "FSDP_VERSION": "1"}
    assert launched_fsdp(named) == FsdpSettings(("GPT2Block",))
    with pytest.raises(ConfigError, match="accelerate launch: fsdp_offload_params: 'true' is not supported"):
        launched_fsdp({**LAUNCHED, "FSDP_OFFLOAD_PARAMS": "true"})
    with pytest.raises(ConfigError, match="fsdp_sharding_strategy: 'SHARD_GRAD_OP' is not supported yet"):
        launched_fsdp({**LAUNCHED, "FSDP_VERSION": "1", "FSDP_SHARDING_STRATEGY": "SHARD_GRAD_OP"})


def test_a_file_reaches_the_trainer(tmp_path: Path) -> None:
    file = tmp_path / "fsdp.json"
    file.write_text(json.dumps({"fsdp_transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}))
    config = load_config(EXAMPLE, ["fsdp=full_shard auto_wrap", f"fsdp_config={file}", "bf16=true"])
    assert config.fsdp_settings() == FsdpSettings(("LlamaDecoderLayer",))
    assert training_arguments(config).fsdp_config == json.loads(file.read_text())
    assert is_sharded_run(config)
    assert not is_sharded_run(load_config(EXAMPLE))
    assert is_sharded_run(load_config(EXAMPLE, [ZERO_3]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fsdp=true", "fp16=true"], "fp16: fsdp scales no loss here"),
        (["fsdp=true", "optim=muon"], "optim: fsdp shards the state of adamw_torch"),
        (["fsdp=true", "deepspeed={zero_optimization: {stage: 2}}"], "exclude each other"),
        (["fsdp=true", "quantization_bit=4"], "quantised weights are not supported yet with fsdp"),
        ([ZERO_3, "quantization_bit=4"], "quantised weights are not supported yet with deepspeed, stage 3"),
        ([ZERO_3, "optim=adafactor"], "optim: deepspeed, stage 3, shards the state of adamw_torch"),
        (["fsdp_config={version: 2}"], "fsdp does not say that they are: set fsdp: true"),
        (["fsdp=7"], "expected true, full_shard auto_wrap, null or false, got 7"),
        (["fsdp=true", "fsdp_config=7"], "expected settings of FSDP"),
        (["fsdp=true", "fsdp_config=missing.json"], "missing.json' does not exist"),
    ],
)
def test_keys_that_do_not_go_together_are_errors(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(EXAMPLE, overrides)
