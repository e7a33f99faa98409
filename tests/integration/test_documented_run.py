"""The documented NICE configuration, key by key as it is printed, from the file to the merged outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from peft import PeftModel

import dataflex
from helpers.tiny import tiny_lora, tiny_model, tiny_samples, tiny_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A working directory with a tiny Llama 3, data in Alpaca form and the documented files."""
    root = tmp_path / "DataFlex"
    (root / "data").mkdir(parents=True)
    tokenizer = tiny_tokenizer(extra_tokens=LLAMA3_TOKENS)
    tokenizer.save_pretrained(root / "model")
    tiny_model(vocab_size=len(tokenizer), max_position_embeddings=1024).save_pretrained(root / "model")
    for name, count, seed in (("train", 14, 0), ("target", 2, 9)):
        rows = [
            {"instruction": sample.messages[0]["content"], "input": "", "output": sample.reference}
            | dict(sample.metadata)
            for sample in tiny_samples(count, seed)
        ]
        (root / "data" / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {"my_train": {"file_name": "train.json"}, "my_target": {"file_name": "target.json"}}
    (root / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    components = yaml.safe_load((FIXTURES / "documented_components.yaml").read_text(encoding="utf-8"))
    nice = components.get("selectors", components)["nice"]["params"]
    nice["reward_model_backend"] = "metric"
    nice["reward_backend_params"]["metric"] = {"metric": "helpers.rewards:text_length"}
    (root / "src/dataflex/configs").mkdir(parents=True)
    (root / "src/dataflex/configs/components.yaml").write_text(yaml.safe_dump(components), encoding="utf-8")
    text = (FIXTURES / "documented_nice.yaml").read_text(encoding="utf-8")
    for documented, ours in (
        ("meta-llama/Llama-3.1-8B", "model"),
        ("alpaca_en_demo", "my_train"),
        ("alpaca_zh_demo", "my_target"),
    ):
        assert documented in text
        text = text.replace(documented, ours)
    (root / "nice.yaml").write_text(text, encoding="utf-8")
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
