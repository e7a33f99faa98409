"""The terms of a score, computed again from what a run has left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dataflex as df
from dataflex.config import load_config
from dataflex.training.run import train_from_config
from helpers.rows import ROWS_CONFIG, rows_project
from helpers.runs import tiny_nice, tiny_trainer

CONFIG = {
    **ROWS_CONFIG,
    "warmup_step": 2,
    "update_step": 1,
    "update_times": 1,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "plot_loss": False,
}
NICE = {"reward_model_backend": "metric", "reward_backend_params": {"metric": {"metric": "token_f1"}}}
RULES = [
    ("less", {"aggregate": "task_max"}, 1e-6),
    ("less", {"aggregate": "mean", "gradient_type": "sgd"}, 1e-6),
    ("less", {"aggregate": "max", "proj_dim": 8192}, 0.06),
    ("nice", {**NICE, "mc_samples": 2, "max_new_tokens": 4}, 1e-6),
]


@pytest.mark.integration
@pytest.mark.parametrize(("name", "params", "tolerance"), RULES, ids=["less tasks", "less mean", "less max", "nice"])
def test_the_parts_of_the_targets_add_up_to_the_score(
    name: str, params: dict[str, object], tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within float32 for exact scores; projected ones differ by the projection's error, 1 / sqrt(8192) = 0.011."""
    config = {**CONFIG, "component_name": name, "component_params": params}
    root = rows_project(tmp_path, config, rows=20, targets=4)
    (root / "dataset_info.json").write_text(json.dumps({"train": {"file_name": "rows.jsonl"}}), encoding="utf-8")
    monkeypatch.chdir(root)
    train_from_config(load_config(root / "run.yaml"))
    before = {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*")}
    stories = df.explain("out", top=2, lowest=1)
    scores = df.Report("out").read.selections[-1].scores
    for story in stories:
        assert story.unknown == []
        parts = story.tables["targets"].to_pandas()["part"]
        assert len(parts) == 4
        assert float(parts.sum()) == pytest.approx(scores[story.place], abs=tolerance)
        assert story.texts["answer"]
    assert [np.argmax(scores), np.argmin(scores)] == [stories[0].place, stories[2].place]
    assert stories[0].tables["scores"]["rank"].to_pylist() == [1]
    assert {path: path.stat().st_mtime_ns for path in (root / "out").rglob("*")} == before


@pytest.mark.integration
@pytest.mark.parametrize("selector", [lambda: tiny_nice(scoring="exact"), df.LessSelector], ids=["nice", "less"])
def test_a_run_from_python_is_told_by_its_trainer(selector: Callable[[], Any], tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, selector=selector())
    trainer.train()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    for step in (2, 5):
        for story in df.explain(tmp_path, top=1, lowest=1, step=step, trainer=trainer):
            assert story.unknown == []
            (score,) = [row["score"] for row in story.tables["scores"].to_pylist() if row["step"] == step]
            assert story.tables["targets"].to_pandas()["part"].sum() == pytest.approx(score, abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    (story,) = df.explain(tmp_path, top=1)
    assert "explain(..., trainer=trainer)" in story.unknown[0]
    assert "\n" not in story.unknown[0]
