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
    foreign_run.train(whole, **settings)
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
@pytest.mark.exhaustive
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize("by", ["odm", "loss"])
def test_two_processes_mix_and_weigh_like_one(tmp_path: Path, by: str) -> None:
    settings = {"by": by, "save_strategy": "no", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    for count, name in ((1, "one"), (2, "two")):
        launch(count, str(SCRIPT), str(tmp_path / name), json.dumps(settings), timeout=280)
    one, two = outcome(tmp_path / "one"), [outcome(tmp_path / "two", rank) for rank in (0, 1)]
    steps = [sorted(foreign.joined(one["batches"][2 * step : 2 * step + 2])) for step in range(8)]
    shared = [
        sorted(foreign.joined(each["batches"][batch] for batch in (2 * step, 2 * step + 1) for each in two))
        for step in range(8)
    ]
    assert shared == steps
    assert len(one["noted"]) == {"odm": 3, "loss": 6}[by]
    for alone, together in zip(one["noted"], two[0]["noted"], strict=True):
        assert together == pytest.approx(alone, rel=1e-4)
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


def records(folder: Path) -> dict[int, Any]:
    """What the selections chose, or the mixtures were, by step."""
    if (folder / "selections").exists():
        return foreign.chosen(folder)
    files = (folder / "mixtures").glob("step-*.json")
    return {int(file.stem.removeprefix("step-")): json.loads(file.read_text()) for file in files}


def assert_killed_runs_end_like(whole: Path, folder: Path, wanted: Any, after: float, by: str) -> bool:
    killed = foreign_run.kill_when(folder, wanted, after=after, by=by)
    foreign_run.finish(folder, by)
    found, expected = outcome(folder), outcome(whole)
    batches = expected.pop("batches")
    own = found.pop("batches")
    assert own == batches[len(batches) - len(own) :]  # none, where all was done before the kill
    assert found == expected
    assert records(folder) == records(whole)
    return killed


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("by", "kills"),
    [
        ("less", 1),
        pytest.param("less", 8, marks=pytest.mark.exhaustive),
        pytest.param("odm", 4, marks=pytest.mark.exhaustive),
        pytest.param("loss", 4, marks=pytest.mark.exhaustive),
    ],
)
def test_runs_that_are_killed_in_a_phase_and_between_phases_end_like_the_unbroken_one(
    tmp_path: Path, by: str, kills: int
) -> None:
    """The trainer's own checkpoints and its own ``resume_from_checkpoint``; half written ones are removed first."""
    foreign_run.finish(tmp_path / "whole", by)
    stream, killed = random.Random(), []
    for number in range(kills):
        for place in ("in a phase", "between phases"):
            folder = tmp_path / f"broken-{number}-{place.split()[0]}"
            step = stream.choice([2, 5] if place == "between phases" else [1, 3, 4, 6, 7])
            state, after = folder / f"checkpoint-{step}" / "trainer_state.json", stream.uniform(0, 0.25)
            killed.append(assert_killed_runs_end_like(tmp_path / "whole", folder, state.exists, after, by))
    assert any(killed)
