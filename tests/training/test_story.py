from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataflex.curriculum.schedule import Phase, Schedule
from dataflex.curriculum.story import plan_line, selection_details, selection_line, selection_statistics
from dataflex.selectors.base import Selection
from dataflex.testing import tiny_project
from dataflex.training.story import log_line
from helpers.runs import tiny_trainer


def story(trainer, caplog, level: int) -> list[str]:
    with caplog.at_level(level, "dataflex"):
        trainer.train()
    return [record.getMessage() for record in caplog.records if record.levelno <= logging.INFO]


def test_a_run_from_python_tells_its_story(tmp_path, caplog):
    told = story(tiny_trainer(tmp_path, eval_strategy="steps", eval_steps=8), caplog, logging.INFO)
    own = ("reliability of the target", "scoring: ")  # a selector's own lines
    lines = [line for line in told if not line.startswith(own)]
    assert lines[0] == "training on 24 rows: 8 steps of 4; selections at steps 2, 5"
    kinds = [line.split(" ")[0] for line in lines[1:]]
    assert kinds == [
        *("step", "step", "selection"),
        *("step",) * 3,
        "selection",
        *("step",) * 3,
        "evaluation",
        "finished",
    ]
    assert re.fullmatch(r"step 3 of 8: loss \d[\d.]*, learning rate \S+, gradient norm \S+, 0:00:\d\d left", lines[4])
    assert "left" not in lines[10]
    first, second = lines[3], lines[7]
    assert first.startswith("selection 1 at step 2: 12 of 24 rows by nice, mean score ")
    assert "last time" not in first
    assert re.search(r", \d+% of them chosen last time too, reliability of the targets .*, \d+\.\d s$", second)
    assert re.fullmatch(r"evaluation at step 8: eval_loss \d[\d.]*", lines[11])


def test_details_are_every_step_checkpoint_and_phase(tmp_path, caplog):
    lines = story(tiny_trainer(tmp_path, logging_steps=8, save_steps=4), caplog, logging.DEBUG)
    for number in range(1, 9):
        assert any(re.match(rf"step {number}: loss .*, \d+\.\d\d s$", line) for line in lines)
    assert f"saved {tmp_path / 'checkpoint-4'}" in lines
    assert any(line.startswith("selection 1: seconds: answers ") for line in lines)
    assert any(line.startswith("selection 1: facts: ") and "candidates.total 24, " in line for line in lines)
    assert len([line for line in lines if line.startswith("step 8 of 8")]) == 1


def test_plans():
    phases = [Phase(0, 2, None), *(Phase(start, start + 2, start) for start in range(2, 22, 2))]
    steps = "2, 4, 6, 8, 10, 12, 14, 16, ..."
    assert plan_line(phases, 8, 1000) == f"training on 1,000 rows: 22 steps of 8; selections at steps {steps}"
    assert plan_line(Schedule(warmup_step=5).phases(1), 8, 9).endswith("5 steps of 8; no selection")


def test_lines_of_entries_without_all_values():
    entry = {"current_steps": 1, "total_steps": 4, "loss": None, "learning_rate": 0.0, "remaining_time": None}
    assert log_line(entry) == "step 1 of 4: loss not a number, learning rate 0"
    assert log_line({"current_steps": 1, "total_steps": 4, "selection_round": 1}) is None


def test_a_selection_without_scores():
    selection = Selection(np.arange(2), None, "random", 10, 1, {"left_out": {"rows": 0}})
    line = selection_line(selection, 1000, selection_statistics(selection, [], 0.04))
    assert line == "selection 1 at step 10: 2 of 1,000 rows by random, 0.0 s"
    assert selection_details(selection) == []


def test_how_reliable_the_target_was_is_said():
    selection = Selection(np.arange(2), None, "less", 10, 1, {"reliability": {"targets": 0.8312, "answers": None}})
    line = selection_line(selection, 1000, selection_statistics(selection, [], 0.04))
    assert line.endswith(" by less, reliability of the targets 0.83, 0.0 s")


@pytest.mark.integration
@pytest.mark.parametrize("quiet", [False, True])
def test_a_log_file_holds_lines_and_no_bars(tmp_path: Path, quiet: bool) -> None:
    tiny_project(tmp_path)
    options = ["--quiet"] if quiet else []
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "dataflex", *options, "train", "run.yaml"]
        subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, stderr=log)
    text = (tmp_path / "log").read_text(encoding="utf-8")
    assert not re.search(r"[\r\x1b]|\d%\||it/s", text), text
    lines = [line for line in text.splitlines() if not line.startswith("warning: ")]
    assert [line.split(":")[0] for line in lines if line.startswith("step ")] == (
        [] if quiet else [f"step {step} of 6" for step in range(1, 7)]
    )
    assert bool(lines) is not quiet
