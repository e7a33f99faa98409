"""Runs that train all parameters, or some layers, from a file: selection, resume, subset, evaluation, what is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file

from dataflex.cli import cli
from dataflex.config import load_config
from dataflex.errors import ConfigError
from dataflex.testing import tiny_project

LAST = {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "freeze_extra_modules": "norm"}
KINDS: list[dict[str, Any]] = [{"finetuning_type": "full"}, LAST]


def command(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(part) for part in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("keys", KINDS, ids=["full", "freeze"])
def test_a_run_of_a_file(tmp_path: Path, keys: dict[str, Any]) -> None:
    file = tiny_project(tmp_path, component_name="less", lora_rank=8, **keys)
    command("train", file)
    out, base = tmp_path / "out", load_file(tmp_path / "model" / "model.safetensors")
    found = load_file(out / "model.safetensors")
    moved = {name for name, value in found.items() if not value.equal(base[name])}
    last = {name for name in found if ".layers.1." in name or name == "model.norm.weight"}
    assert moved == (set(found) if keys["finetuning_type"] == "full" else last)
    table = pq.read_table(out / "selections" / "step-2.parquet")
    report = json.loads(table.schema.metadata[b"dataflex"])["report"]
    assert report["scoring"]["used"] == "exact"
    assert "library_name: transformers" in (out / "README.md").read_text(encoding="utf-8")

    resumed = [f"output_dir={tmp_path / 'resumed'}", f"resume_from_checkpoint={out / 'checkpoint-4'}"]
    command("train", file, *resumed)
    again = load_file(tmp_path / "resumed" / "model.safetensors")
    assert all(value.equal(found[name]) for name, value in again.items())

    subset = tmp_path / "subset.jsonl"
    command("select", file, "--checkpoint", out / "checkpoint-2", "--num", 8, "--output", subset)
    ranks = pq.read_table(subset.with_suffix(".scores.parquet"))["rank"].to_pylist()
    assert [rank is not None for rank in ranks] == table["chosen"].to_pylist()

    compared = json.loads(command("eval", file, "--json"))["models"]
    assert [model["name"] for model in compared] == ["base", str(out)]
    assert compared[1]["estimates"]["eval_loss"]["value"] != compared[0]["estimates"]["eval_loss"]["value"]


def test_keys_that_do_not_go_together(tmp_path: Path) -> None:
    file = tiny_project(tmp_path)
    said = load_config(file, ["finetuning_type=full", "lora_rank=16", "loraplus_lr_ratio=4"]).warnings()
    assert [line.split(": ", 1)[1] for line in said] == [
        "lora_rank: has no effect with finetuning_type full",
        "loraplus_lr_ratio: has no effect with finetuning_type full",
    ]
    (line,) = load_config(file, ["freeze_extra_modules=norm"]).warnings()
    assert line.endswith("freeze_extra_modules: has no effect with finetuning_type lora")
    with pytest.raises(ConfigError, match="finetuning_type full trains no adapter; merge it first"):
        load_config(file, ["finetuning_type=full", "adapter_name_or_path=somewhere"])
    with pytest.raises(ConfigError, match="0 layers would train nothing"):
        load_config(file, ["finetuning_type=freeze", "freeze_trainable_layers=0"])
    with pytest.raises(ConfigError, match=r"'oft' is not supported \(yet\); supported: lora, full, freeze"):
        load_config(file, ["finetuning_type=oft"])
