from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.processes import launch
from helpers.scripts import ROOT

SCRIPT = ROOT / "tests" / "helpers" / "sharded_passes.py"
REDUCING = ("reduce_scatter", "allreduce", "all_reduce")


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_a_pass_over_sharded_parameters_gathers_layers_and_reduces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five rows on two processes: 3 + 2 passes, and one along with them."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 18))  # what is freed is given back, so that it is seen
    launch(2, str(SCRIPT), str(tmp_path), timeout=280)
    for rank in range(2):
        seen = json.loads((tmp_path / f"{rank}.json").read_text())
        assert seen["difference"] < 1e-5
        assert seen["calls"] == [1, 1, 1]
        assert seen["with_gradient"] == []
        assert seen["weight_gradients"] == 0
        assert not any(word in name for name in seen["collectives"] for word in REDUCING)
        assert seen["collectives"]["_allgather_base_"] > 0
        # What is watched for happens in a step of training.
        assert seen["control"]["weight_gradients"] > 0
        assert seen["control"]["collectives"]["_reduce_scatter_base_"] > 0
        # With its own half, a process never holds as much as the whole model.
        assert seen["growth"] < seen["whole_bytes"] / 2
