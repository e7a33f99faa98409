"""Mixtures and weights of two processes are those of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.processes import launch
from helpers.scripts import ROOT

SCRIPT = ROOT / "tests" / "helpers" / "distributed_mixing.py"


def logged(output_dir: Path) -> list[dict[str, float]]:
    """Losses, weights and shares of a run, an entry each."""
    entries = [json.loads(line) for line in (output_dir / "trainer_log.jsonl").read_text().splitlines()]
    wanted = ("loss", "weight", "mixture/")
    return [{key: value for key, value in entry.items() if key.startswith(wanted)} for entry in entries]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mixer", "doremi"),
        ("weighter", "loss"),
        pytest.param("mixer", "odm", marks=pytest.mark.exhaustive),
        pytest.param("weighter", "adapt", marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_train_like_one(tmp_path: Path, kind: str, name: str) -> None:
    found = {}
    for processes in (1, 2):
        launch(processes, str(SCRIPT), str(tmp_path / str(processes)), kind, name, timeout=280)
        found[processes] = logged(tmp_path / str(processes))
    assert len(found[1]) == (11 if kind == "mixer" else 5)
    for one, two in zip(found[1], found[2], strict=True):
        assert two == pytest.approx(one, rel=1e-4)
