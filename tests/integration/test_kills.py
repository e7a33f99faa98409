"""Runs that are killed at random moments and resumed end like the unbroken one.

``make kills`` does twenty of them.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers import kills

KILLS = int(os.environ.get("DATAFLEX_TEST_KILLS", "3"))

FEW = () if "DATAFLEX_TEST_KILLS" in os.environ else pytest.mark.exhaustive
"""Mixers and weighters are killed where kills are asked for; the default suite kills a run with a selector."""


def outcome(output_dir: Path) -> dict[str, object]:
    """What must not depend on kills: selections with their scores, mixtures, weights of samples, losses, the model."""
    log = [json.loads(line) for line in (output_dir / "trainer_log.jsonl").read_text().splitlines()]
    return {
        "selections": [
            pq.read_table(file).select(["index", "score", "rank"]).to_pylist()
            for file in sorted((output_dir / "selections").glob("*"))
        ],
        "mixtures": [file.read_text() for file in sorted((output_dir / "mixtures").glob("*"))],
        "weights of samples": [file.read_text() for file in sorted((output_dir / "weights").glob("*"))],
        "quantiles": [[value for key, value in entry.items() if key.startswith("weight")] for entry in log],
        "losses": [(entry["current_steps"], entry["loss"]) for entry in log if "loss" in entry],
        "eval_losses": [(entry["current_steps"], entry["eval_loss"]) for entry in log if "eval_loss" in entry],
        "weights": (output_dir / "adapter_model.safetensors").read_bytes(),
    }


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(60 * (1 + KILLS) + 240)
@pytest.mark.parametrize(
    "kind",
    ["selector", pytest.param("mixer", marks=FEW), pytest.param("weighter", marks=FEW)],
)
def test_a_run_that_is_killed_at_any_moment_ends_like_the_unbroken_one(tmp_path: Path, kind: str) -> None:
    kills.finish(tmp_path / "warm-up", kind)
    seconds = kills.finish(tmp_path / "whole", kind)
    expected = outcome(tmp_path / "whole")
    assert len(expected["selections"]) == (2 if kind == "selector" else 0)
    assert len(expected["mixtures"]) == (3 if kind == "mixer" else 0)
    stream, killed = random.Random(), 0
    for number in range(KILLS):
        moment = stream.uniform(0, seconds)
        broken = tmp_path / f"broken-{number}"
        killed += kills.kill_after(broken, moment, kind)
        kills.finish(broken, kind)
        assert outcome(broken) == expected, f"killed after {moment:.3f} of {seconds:.3f} s"
    assert killed > 0
