"""Runs of a file with DoRA and rsLoRA."""

from __future__ import annotations

import json
import math
from pathlib import Path

from click.testing import CliRunner
from peft.tuners.lora import LoraLayer

from dataflex.cli import cli
from dataflex.config import load_config
from dataflex.models.model import add_lora
from dataflex.testing import tiny_model, tiny_project


def test_a_run_trains_what_the_keys_name(tmp_path: Path) -> None:
    file = tiny_project(tmp_path, component_name="less", use_dora=True, use_rslora=True)
    done = CliRunner().invoke(cli, ["train", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "one sample at a time" not in done.output
    kept = json.loads((tmp_path / "out" / "adapter_config.json").read_text(encoding="utf-8"))
    assert kept["use_dora"] is kept["use_rslora"] is True
    again = ["train", str(file), "use_dora=false", f"resume_from_checkpoint={tmp_path / 'out' / 'checkpoint-4'}"]
    refused = CliRunner().invoke(cli, [*again, f"output_dir={tmp_path / 'other'}"])
    assert refused.exit_code == 1
    assert "use_dora" in refused.output


def test_the_scale_is_over_the_root_of_the_rank() -> None:
    adapted = add_lora(tiny_model(), rank=9, alpha=18, target="q_proj", rslora=True)
    scales = {part.scaling["default"] for part in adapted.modules() if isinstance(part, LoraLayer)}
    assert scales == {18 / math.sqrt(9)}


def test_keys_that_do_not_act_are_said(tmp_path: Path) -> None:
    file = tiny_project(tmp_path)
    lines = load_config(file, ["use_dora=true", "finetuning_type=full"]).warnings()
    assert any(line.endswith("use_dora: has no effect with finetuning_type full") for line in lines)
