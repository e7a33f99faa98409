"""The documented NICE configuration, key by key as it is printed, from the file to the merged outputs."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest
import yaml
from peft import PeftModel

import dataflex
from helpers.documented import LLAMA3_TOKENS, documented_project
from helpers.tiny import tiny_lora, tiny_model, tiny_tokenizer


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with the documented files; the judge is a metric, since no judge runs here."""
    root = documented_project(tmp_path)
    path = root / "src/dataflex/configs/components.yaml"
    components = yaml.safe_load(path.read_text(encoding="utf-8"))
    nice = components.get("selectors", components)["nice"]["params"]
    nice["reward_model_backend"] = "metric"
    nice["reward_backend_params"]["metric"] = {"metric": "helpers.rewards:text_length"}
    path.write_text(yaml.safe_dump(components), encoding="utf-8")
    monkeypatch.chdir(root)
    return root


@pytest.mark.integration
def test_the_documented_configuration_runs(project):
    results = dataflex.train("nice.yaml")
    out = project.parent / "dataflex_saves" / "nice_output"
    assert results["selections"] == 2 or results["steps"] < 30
    assert results["best_metric"] <= results["eval_loss"]
    for name in ("adapter_model.safetensors", "config.yaml", "training_loss.png", "README.md", "trainer_log.jsonl"):
        assert (out / name).stat().st_size > 0
    table = pq.read_table(out / "selections" / "step-10.parquet").to_pydict()
    assert sum(table["chosen"]) == 10
    assert len(table["index"]) == 14
    rollouts = (out / "rollouts" / "step-10.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rollouts) == 2 * 4
    loaded = PeftModel.from_pretrained(tiny_model(vocab_size=len(tiny_tokenizer(extra_tokens=LLAMA3_TOKENS))), out)
    assert loaded.peft_config["default"].r == 16
    assert loaded.peft_config["default"].lora_alpha == 8


@pytest.mark.integration
def test_the_resolved_configuration_repeats_the_run(project):
    fewer = ["warmup_step=2", "update_step=2", "update_times=1", "early_stopping_steps=null", "eval_steps=2"]
    short = [*fewer, "component_params={max_new_tokens: 8}"]
    first = dataflex.train("nice.yaml", *short)
    out = project.parent / "dataflex_saves" / "nice_output"
    replay = project / "replay.yaml"
    replay.write_text((out / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    before = (out / "adapter_model.safetensors").read_bytes()
    second = dataflex.train(replay)
    assert second["eval_loss"] == first["eval_loss"]
    assert (out / "adapter_model.safetensors").read_bytes() == before


@pytest.mark.integration
def test_an_adapter_is_trained_further_and_plain_training_needs_no_selector(project):
    from dataflex.model import save_model

    tokenizer = tiny_tokenizer(extra_tokens=LLAMA3_TOKENS)
    save_model(tiny_lora(tiny_model(vocab_size=len(tokenizer))), tokenizer, project / "adapter")
    results = dataflex.train(
        "nice.yaml",
        "train_type=static",
        "adapter_name_or_path=adapter",
        "val_size=0.2",
        "eval_dataset=null",
        "output_dir=static",
        "per_device_train_batch_size=2",
        "early_stopping_steps=null",
    )
    assert results["train_samples"] == 11
    assert results["steps"] == results["total_steps"] == 6
    assert results["selections"] == 0
    assert not (project / "static" / "selections").exists()
    config = json.loads((project / "static" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == 4
