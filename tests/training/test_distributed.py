from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from helpers.processes import launch
from helpers.scripts import ROOT

TOLERANCE = 1e-4
ZERO_3 = {"deepspeed": {"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}}}
SCRIPT = ROOT / "tests" / "helpers" / "distributed_run.py"


def train(output_dir: Path, selector: str, processes: int, **more: Any) -> None:
    launch(processes, str(SCRIPT), str(output_dir), selector, json.dumps(more), timeout=280)


def losses(output_dir: Path, key: str) -> list[float]:
    entries = [json.loads(line) for line in (output_dir / "trainer_log.jsonl").read_text().splitlines()]
    return [entry[key] for entry in entries if key in entry]


def selections(output_dir: Path) -> list[tuple[list[int], np.ndarray]]:
    found = []
    for file in sorted((output_dir / "selections").iterdir()):
        table = pq.read_table(file).to_pydict()
        chosen = [index for index, is_chosen in zip(table["index"], table["chosen"], strict=True) if is_chosen]
        found.append((chosen, np.array(table["score"], dtype=np.float64)))
    return found


def assert_same(found: tuple[list[int], np.ndarray], expected: tuple[list[int], np.ndarray]) -> None:
    """The same scores up to float rounding, and the same samples but for those whose scores that may swap."""
    np.testing.assert_allclose(found[1], expected[1], rtol=TOLERANCE, atol=TOLERANCE)
    swapped = set(found[0]) ^ set(expected[0])
    scores = expected[1]
    if swapped:
        threshold = scores[expected[0]].min()
        np.testing.assert_allclose(scores[list(swapped)], threshold, atol=4 * TOLERANCE)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize(
    "selector",
    [
        "nice",
        pytest.param("less", marks=pytest.mark.exhaustive),
        pytest.param("random", marks=pytest.mark.exhaustive),
        pytest.param("delta_loss", marks=pytest.mark.exhaustive),
    ],
)
def test_two_processes_train_like_one(tmp_path: Path, selector: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, selector, 1)
    train(two, selector, 2)
    assert losses(two, "loss") == pytest.approx(losses(one, "loss"), rel=1e-5)
    assert losses(two, "eval_loss") == pytest.approx(losses(one, "eval_loss"), rel=1e-5)
    assert len(selections(one)) == 2
    for found, expected in zip(selections(two), selections(one), strict=True):
        assert_same(found, expected)
    # A run of two processes goes on as one: the next selection is the same.
    for later in (5, 8):
        shutil.rmtree(two / f"checkpoint-{later}")
    second = selections(two)[1]
    (two / "selections" / "step-5.parquet").unlink()
    train(two, selector, 1)
    assert_same(selections(two)[1], second)


@pytest.mark.exhaustive
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_ranks_that_split_their_batches_differently_train_like_one(tmp_path: Path) -> None:
    """Rows of 21 to 34 tokens on both sides of a limit of 25, beyond which each length has its own frequencies."""
    rope = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10000.0}
    settings = {"per_device_train_batch_size": 2, "model": {"rope_parameters": rope, "max_position_embeddings": 25}}
    one, two = tmp_path / "one", tmp_path / "two"
    train(one, "random", 1, **settings)
    train(two, "random", 2, **settings)
    assert losses(two, "loss") == pytest.approx(losses(one, "loss"), rel=1e-5)
    assert losses(two, "eval_loss") == pytest.approx(losses(one, "eval_loss"), rel=1e-5)


@pytest.mark.exhaustive
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("selector", ["nice", "less", "random", "delta_loss"])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path, selector: str, before: int, after: int) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(whole, selector, before)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "selections")
    # Nothing stays that the next selection could read in place of computing.
    for folder in ("features", "rollouts", "losses"):
        shutil.rmtree(resumed / folder, ignore_errors=True)
    for number in (5, 8):
        shutil.rmtree(resumed / f"checkpoint-{number}", ignore_errors=True)
    train(resumed, selector, after)
    assert losses(resumed, "loss") == pytest.approx(losses(whole, "loss"), rel=1e-5)
    [found] = selections(resumed)
    assert_same(found, selections(whole)[1])


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_zero_trains_and_selects_like_one_process_and_goes_on_from_its_checkpoints(tmp_path: Path, stage: int) -> None:
    pytest.importorskip("deepspeed")
    one, sharded, resumed = tmp_path / "one", tmp_path / "sharded", tmp_path / "resumed"
    settings = {"zero_optimization": {"stage": stage}, "train_batch_size": "auto", "bf16": {"enabled": "auto"}}
    train(one, "less", 1)
    train(sharded, "less", 2, deepspeed=settings)
    for key in ("loss", "grad_norm", "eval_loss"):
        assert losses(sharded, key) == pytest.approx(losses(one, key), rel=1e-4)
    for found, expected in zip(selections(sharded), selections(one), strict=True):
        assert_same(found, expected)
    resumed.mkdir()
    shutil.copytree(sharded / "checkpoint-4", resumed / "checkpoint-4")
    train(resumed, "less", 2, deepspeed=settings)
    assert losses(resumed, "loss") == pytest.approx(losses(one, "loss"), rel=1e-4)
    assert_same(selections(resumed)[0], selections(one)[1])


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize(
    ("selector", "settings"),
    [
        ("nice", {"model": "qwen", "full": True}),
        pytest.param("less", {}, marks=pytest.mark.exhaustive),
        pytest.param("less", {"full": True}, marks=pytest.mark.exhaustive),
        pytest.param("less", {"model": "qwen"}, marks=pytest.mark.exhaustive),
        pytest.param("nice", {}, marks=pytest.mark.exhaustive),
        pytest.param("delta_loss", {"optim": "sgd"}, marks=pytest.mark.exhaustive),
        pytest.param("less", {"gradient_checkpointing": True}, marks=pytest.mark.exhaustive),
        pytest.param("less", ZERO_3, marks=pytest.mark.exhaustive),
        pytest.param("nice", ZERO_3 | {"model": "qwen", "full": True}, marks=pytest.mark.exhaustive),
    ],
)
def test_sharded_parameters_train_and_select_like_whole_ones(
    tmp_path: Path, selector: str, settings: dict[str, Any]
) -> None:
    one, sharded = tmp_path / "one", tmp_path / "sharded"
    train(one, selector, 1, **settings)
    train(sharded, selector, 2, **({} if "deepspeed" in settings else {"fsdp": True}), **settings)
    for key in ("loss", "grad_norm", "eval_loss"):
        assert losses(sharded, key) == pytest.approx(losses(one, key), rel=TOLERANCE)
    assert len(selections(one)) == 2
    for found, expected in zip(selections(sharded), selections(one), strict=True):
        assert_same(found, expected)
    for name in ("adapter_model.safetensors", "model.safetensors"):
        assert (sharded / name).exists() == (one / name).exists()
        if (one / name).exists():
            found, expected = load_file(sharded / name), load_file(one / name)
            assert found.keys() == expected.keys()
            for key, values in expected.items():
                torch.testing.assert_close(found[key], values, rtol=1e-3, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_accelerate_launch_shards_what_its_file_says(tmp_path: Path) -> None:
    """The script itself looks whether the parameters are sharded."""
    one, launched = tmp_path / "one", tmp_path / "launched"
    train(one, "random", 1)
    command = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "examples" / "accelerate" / "fsdp.yaml")]
    launch(1, *command, "--num_processes", "2", str(SCRIPT), str(launched), "random", timeout=280)
    assert losses(launched, "loss") == pytest.approx(losses(one, "loss"), rel=TOLERANCE)


@pytest.mark.exhaustive
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("sharding", [{"fsdp": True}, ZERO_3], ids=["fsdp", "zero-3"])
def test_any_number_of_processes_goes_on_with_a_sharded_run(
    tmp_path: Path, sharding: dict[str, Any], full: bool, processes: int
) -> None:
    settings = {"global_batch": 6, "full": full, **sharding}
    whole, resumed = tmp_path / "two", tmp_path / "resumed"
    train(whole, "less", 2, **settings)
    shutil.copytree(whole / "checkpoint-4", resumed / "checkpoint-4")
    train(resumed, "less", processes, **settings)
    assert losses(resumed, "loss") == pytest.approx(losses(whole, "loss"), rel=TOLERANCE)
    assert_same(selections(resumed)[0], selections(whole)[1])
