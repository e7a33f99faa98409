from __future__ import annotations

import json

import pytest

from dataflex.curriculum.schedule import Schedule
from dataflex.selectors.random import RandomSelector
from dataflex.training.results import passes
from helpers.runs import tiny_trainer


def test_results_mean_what_they_mean_in_transformers_also_after_a_resume(tmp_path):
    run = {
        "selector": RandomSelector(),
        "schedule": Schedule(warmup_step=9),
        "save_steps": 3,
    }  # 6 steps a pass
    whole = tiny_trainer(tmp_path / "whole", **run).train()
    entries = [json.loads(line) for line in (tmp_path / "whole" / "trainer_log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert whole["train_loss"] == pytest.approx(sum(losses) / 9)
    assert (whole["epoch"], [entry["epoch"] for entry in entries if "loss" in entry][5]) == (1.5, 1.0)
    assert whole["train_samples_per_second"] == pytest.approx(9 * 4 / whole["train_runtime"], rel=0.01)
    assert whole["train_steps_per_second"] == pytest.approx(9 / whole["train_runtime"], rel=0.01)
    assert json.loads((tmp_path / "whole" / "all_results.json").read_text()) == whole
    source = tmp_path / "whole" / "checkpoint-6"
    resumed = tiny_trainer(tmp_path / "resumed", resume_from_checkpoint=source, **run).train()
    assert resumed["train_loss"] == pytest.approx(whole["train_loss"])
    before = json.loads((source / "state.json").read_text())["runtime"]
    assert resumed["train_runtime"] > before > 0


def test_a_pass_is_as_many_steps_as_it_takes_to_see_every_row():
    assert passes(6, 24, 4) == 1.0
    assert passes(14, 25, 4) == 2.0
