"""A selection that torchrun's processes share is that of one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.processes import launch
from helpers.rows import rows_project

SCRIPT = """
import atexit, json, os, sys
import dataflex
import torch
from dataflex.config import load_config
from dataflex.training.run import build_model
from dataflex.testing import tiny_tokenizer

atexit.register(lambda: write("group", torch.distributed.is_initialized()))  # run last of all
chosen = dataflex.select(
    build_model(load_config("run.yaml")), tiny_tokenizer(), "rows.jsonl", "target.jsonl", num_samples=3,
    template="chatml", gradient_type="sgd", proj_dim=256, save_interval=4,
)
def write(name, value):
    with open(f"{sys.argv[1]}-{os.environ.get('RANK', '0')}-{name}.json", "w") as file:
        json.dump(value, file)

write("chosen", {"rows": chosen.rows.tolist(), "scores": chosen.scores.tolist()})
"""
CONFIG = {
    "model_name_or_path": "model",
    "dataset": "rows.jsonl",
    "eval_dataset": "target.jsonl",
    "template": "chatml",
    "lora_rank": 2,
    "output_dir": "out",
    "train_type": "dynamic_select",
    "component_name": "less",
    "component_params": {"gradient_type": "sgd", "proj_dim": 256, "save_interval": 4},
    "update_step": 1,
    "update_times": 1,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, 14 rows, a target and a configuration."""
    root = rows_project(tmp_path_factory.mktemp("project"), CONFIG, rows=14, targets=3)
    (root / "choose.py").write_text(SCRIPT, encoding="utf-8")
    return root


def subset(file: Path) -> list[tuple[int, float]]:
    notes = [json.loads(line)["_dataflex"] for line in file.read_text(encoding="utf-8").splitlines()]
    return [(note["row"], note["score"]) for note in notes]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_the_command_shares_the_work(project: Path, tmp_path: Path) -> None:
    command = ["-m", "dataflex", "select", "run.yaml", "-n", "4", "-o"]
    launch(1, *command, str(tmp_path / "one.jsonl"), cwd=project)
    done = launch(2, *command, str(tmp_path / "two.jsonl"), cwd=project)
    assert done.stdout.count("4 of 14 rows are in") == 1
    one, two = subset(tmp_path / "one.jsonl"), subset(tmp_path / "two.jsonl")
    assert [row for row, _ in two] == [row for row, _ in one]
    np.testing.assert_allclose([score for _, score in two], [score for _, score in one], atol=1e-5)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_python_shares_the_work_in_a_temporary_folder(project: Path, tmp_path: Path) -> None:
    for processes, name in ((1, "one"), (2, "two")):
        launch(processes, "choose.py", str(tmp_path / name), cwd=project)
    one, *two = (json.loads((tmp_path / f"{name}-chosen.json").read_bytes()) for name in ("one-0", "two-0", "two-1"))
    assert two[0] == two[1]
    assert two[0]["rows"] == one["rows"]
    np.testing.assert_allclose(two[0]["scores"], one["scores"], atol=1e-5)
    # Threads of a group that is left behind can abort a process at its end.
    assert [json.loads((tmp_path / f"two-{rank}-group.json").read_bytes()) for rank in range(2)] == [False, False]
