"""The documented configurations, key by key as they are printed, from the file to the merged model."""

from __future__ import annotations

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import dataflex
from dataflex.cli import cli
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from helpers.documented import LLAMA3_TOKENS, documented_project
from helpers.near import near_index
from helpers.processes import launch
from helpers.scripts import ROOT


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
    merged = exported()
    assert_same_answers(merged, loaded)


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
    from dataflex.models.model import save_model

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


def exported(*overrides):
    """What ``dataflex export`` makes with the documented file, loaded by transformers."""
    done = CliRunner().invoke(cli, ["export", "merge.yaml", *overrides])
    assert done.exit_code == 0, done.output
    folder = done.stdout.partition(": ")[0]
    assert AutoTokenizer.from_pretrained(folder).chat_template
    return AutoModelForCausalLM.from_pretrained(folder)


def assert_same_answers(merged, adapted):
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        torch.testing.assert_close(merged.eval()(ids).logits, adapted.eval()(ids).logits, rtol=1e-4, atol=1e-4)


def near_project(tmp_path, monkeypatch, rows, *, neighbours):
    """A working directory where the documented NEAR file finds its matrix."""
    root = documented_project(tmp_path, rows)
    monkeypatch.chdir(root)
    matrix = root / "src/dataflex/offline_selector/top_indices.npy"
    matrix.parent.mkdir(parents=True)
    near_index(root, "my_train", "my_target", dataset_dir="data", max_K=neighbours, save_indices_path=matrix).build()
    return root


@pytest.mark.integration
def test_the_documented_near_configuration_runs_with_fewer_steps_and_is_exported(tmp_path, monkeypatch):
    root = near_project(tmp_path, monkeypatch, 70, neighbours=70)
    results = dataflex.train("near.yaml", "warmup_step=2", "update_step=2", "update_times=2")
    assert (results["steps"], results["selections"], results["train_samples"]) == (6, 2, 70)
    out = root.parent / "dataflex_saves"
    table = pq.read_table(out / "selections" / "step-2.parquet").to_pydict()
    assert sum(table["chosen"]) == 2 * 2 * 16
    size = len(tiny_tokenizer(extra_tokens=LLAMA3_TOKENS))
    loaded = PeftModel.from_pretrained(tiny_model(vocab_size=size, max_position_embeddings=1024), out)
    merged = exported("adapter_name_or_path=../dataflex_saves", "template=qwen", "export_dir=../merged")
    assert_same_answers(merged, loaded)


@pytest.mark.exhaustive
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_run_the_documented_line_of_deepspeed(tmp_path, monkeypatch):
    """ZeRO-3; as printed but for the number of steps, it trains as one process does without the line."""
    root = near_project(tmp_path, monkeypatch, 70, neighbours=70)
    shutil.copytree(ROOT / "examples" / "deepspeed", root / "examples" / "deepspeed")
    file = root / "near.yaml"
    short = ["gradient_accumulation_steps=8", "warmup_step=2", "update_step=2", "update_times=2"]
    one = dataflex.train(file, *short, "gradient_accumulation_steps=16", "output_dir=one")
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("# deepspeed: ", "deepspeed: "), encoding="utf-8")
    done = launch(2, "-m", "dataflex", "train", "near.yaml", *short, "output_dir=two", cwd=root)
    two = json.loads((root / "two" / "all_results.json").read_text(encoding="utf-8"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-3)
    found = [pq.read_table(root / name / "selections" / "step-4.parquet").to_pydict() for name in ("one", "two")]
    assert found[0]["chosen"] == found[1]["chosen"]
    assert "parameters are sharded as ZeRO-3 does" in done.stdout + done.stderr


@pytest.mark.exhaustive
@pytest.mark.timeout(3000)
def test_the_documented_near_configuration_runs_with_the_printed_steps(tmp_path, monkeypatch):
    near_project(tmp_path, monkeypatch, 16_000, neighbours=16_000)
    results = dataflex.train("near.yaml")
    assert (results["steps"], results["selections"]) == (1400, 2)
