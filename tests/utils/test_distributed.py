"""Processes that wait for one another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.processes import launch
from helpers.scripts import ROOT


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_a_process_may_work_for_longer_than_a_collective_may_take(tmp_path: Path) -> None:
    launch(2, str(ROOT / "tests" / "helpers" / "slow_rank.py"), str(tmp_path))
    assert [(tmp_path / f"{rank}.txt").read_text(encoding="utf-8") for rank in range(2)] == ["[0, 0, 1]", "[0, 1, 1]"]
