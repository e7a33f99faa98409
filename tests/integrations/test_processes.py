"""A curriculum inside transformers' trainer in several processes, and in processes that are killed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import foreign, foreign_run
from helpers.processes import launch
from helpers.scripts import ROOT

SCRIPT = ROOT / "tests" / "helpers" / "foreign_run.py"


def outcome(output_dir: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output_dir / f"outcome-{rank}.json").read_text())
    return found


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_with_accumulation_and_workers_train_on_the_selections_like_one(tmp_path: Path) -> None:
    settings = {
        "n": 40,
        "save_strategy": "no",
        "per_device_train_batch_size": 2,  # of all processes
        "gradient_accumulation_steps": 4,
        "dataloader_num_workers": 2,
    }
    whole = tmp_path / "one"
    launch(1, str(SCRIPT), str(whole), json.dumps(settings), timeout=280)
    launch(2, str(SCRIPT), str(tmp_path / "two"), json.dumps(settings), timeout=280)
    one, two = outcome(whole), [outcome(tmp_path / "two", rank) for rank in (0, 1)]
    steps = [foreign.joined(one["batches"][4 * step : 4 * step + 4]) for step in range(8)]
    shared = [
        foreign.joined(each["batches"][batch] for batch in range(4 * step, 4 * step + 4) for each in two)
        for step in range(8)
    ]
    foreign.assert_followed(shared, tmp_path / "two", 40)
    assert foreign.chosen(tmp_path / "two") == foreign.chosen(whole)
    assert shared == steps
    for step, loss in one["losses"].items():
        assert two[0]["losses"][step] == pytest.approx(loss, rel=1e-4)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_two_processes_of_sfttrainer_train_on_the_selections(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed (the dev extra brings it)")
    settings = {
        "sft": True,
        "n": 40,
        "per_device_train_batch_size": 2,  # of all processes
        "gradient_accumulation_steps": 4,
        "dataloader_num_workers": 2,
        "ddp_find_unused_parameters": False,
    }
    launch(2, str(SCRIPT), str(tmp_path), json.dumps(settings), timeout=280)
    two = [outcome(tmp_path, rank)["batches"] for rank in (0, 1)]
    shared = [
        foreign.joined(each[batch] for batch in range(4 * step, 4 * step + 4) for each in two) for step in range(8)
    ]
    foreign.assert_followed(shared, tmp_path, 40)


def assert_killed_runs_end_like(
    expected: dict[str, Any], selections: dict[int, list[int]], folder: Path, wanted: Any, after: float
) -> bool:
    killed = foreign_run.kill_when(folder, wanted, after=after)
    foreign_run.finish(folder)
    found = outcome(folder)
    assert found["losses"] == expected["losses"]
    assert found["weights"] == expected["weights"]
    whole = expected["batches"]
    assert found["batches"] == whole[len(whole) - len(found["batches"]) :]  # none, where all was done before the kill
    assert foreign.chosen(folder) == selections
    return killed


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [1, pytest.param(8, marks=pytest.mark.exhaustive)])
def test_runs_that_are_killed_in_a_phase_and_between_phases_end_like_the_unbroken_one(
    tmp_path: Path, kills: int
) -> None:
    """The trainer's own checkpoints and its own ``resume_from_checkpoint``; half written ones are removed first."""
    foreign_run.finish(tmp_path / "whole")
    expected, selections = outcome(tmp_path / "whole"), foreign.chosen(tmp_path / "whole")
    stream, killed = random.Random(), []
    for number in range(kills):
        for place in ("in a phase", "between phases"):
            folder = tmp_path / f"broken-{number}-{place.split()[0]}"
            step = stream.choice([2, 5] if place == "between phases" else [1, 3, 4, 6, 7])
            state, after = folder / f"checkpoint-{step}" / "trainer_state.json", stream.uniform(0, 0.25)
            killed.append(assert_killed_runs_end_like(expected, selections, folder, state.exists, after))
    assert any(killed)
