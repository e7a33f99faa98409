"""Runs with weights: equal ones change nothing; others do not depend on how a step is cut up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import dataflex as df
from dataflex.curriculum.step import RowLosses
from dataflex.curriculum.weight_file import WeightFile
from dataflex.errors import TrainingError
from dataflex.testing import tiny_dataset
from dataflex.weighters.adapt import AdaptWeighter
from dataflex.weighters.base import GlobalBatch, Weighter, WeighterConfig
from dataflex.weighters.loss import LossWeighter
from helpers.mixing import domain_trainer

RECORD = Path("weights", "steps.jsonl")


class Recording(Weighter[WeighterConfig]):
    """Weighs by the loss itself, and remembers what it returned."""

    Config = WeighterConfig
    name = "recording"

    def __init__(self) -> None:
        super().__init__()
        self.returned: list[NDArray[np.float64]] = []
        self.steps: list[int] = []

    def weights(self, batch: GlobalBatch) -> NDArray[np.float64]:
        self.returned.append(batch.losses / batch.losses.mean())
        self.steps.append(batch.step)
        return self.returned[-1]


def entries(folder: Path, key: str) -> list[Any]:
    lines = (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [found[key] for found in map(json.loads, lines) if key in found]


def test_equal_weights_are_the_static_run(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"gradient_accumulation_steps": 4, "max_steps": 20}
    domain_trainer(tmp_path / "static", **settings).train()
    domain_trainer(tmp_path / "weighted", weighter=LossWeighter(strategy="uniform"), **settings).train()
    losses = [entries(tmp_path / name, "loss") for name in ("static", "weighted")]
    assert len(losses[0]) == 20
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    assert entries(tmp_path / "weighted", "weight_min") == entries(tmp_path / "weighted", "weight_max") == [1.0] * 20
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("static", "weighted"))
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-6, atol=1e-6)


def run(folder: Path, micro_batch: int, weighter: Weighter[Any], **settings: Any) -> Path:
    domain_trainer(
        folder,
        weighter=weighter,
        schedule=df.Schedule(2, 4, 1),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=8 // micro_batch,
        **settings,
    ).train()
    return folder


def test_weights_do_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    found = {size: Recording() for size in (1, 2, 8)}
    folders = {size: run(tmp_path / str(size), size, weighter) for size, weighter in found.items()}
    assert found[1].steps == [3, 4, 5, 6]
    for size in (2, 8):
        np.testing.assert_allclose(found[size].returned, found[1].returned, rtol=1e-4)
        np.testing.assert_allclose(entries(folders[size], "loss"), entries(folders[1], "loss"), rtol=1e-4)
    assert len(entries(folders[1], "weight_median")) == 4  # no weights in the warm-up
    assert max(entries(folders[1], "weight_max")) > 1.01


def test_a_weighted_step_is_the_step_by_hand(tmp_path: Path) -> None:
    """A weight multiplies the losses of a sample's tokens; the sum is divided by the tokens of the step."""
    weighter = Recording()
    trainer = domain_trainer(tmp_path, weighter=weighter, max_steps=1, max_grad_norm=0.0, logging_steps=1)
    rows = trainer.curriculum.rows(0)
    gradients: dict[str, NDArray[np.float64]] = {}

    def keep(*args: Any) -> None:
        del args
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                gradients[name] = parameter.grad.double().numpy().copy()  # type: ignore[union-attr]

    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.optimizer.register_step_pre_hook(keep)
    trainer.train()
    for name, value in trainer.model.named_parameters():
        value.data.copy_(before[name])
    trainer.model.zero_grad()
    tokens = sum(trainer.train_dataset[row].num_labels for row in rows)
    for row, weight in zip(rows, weighter.returned[0], strict=True):
        example = trainer.train_dataset[row]
        ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
        loss = trainer.model(ids, labels=labels).loss * example.num_labels
        (loss * float(weight) / tokens).backward()
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            expected = parameter.grad.double().numpy()  # type: ignore[union-attr]
            scale = abs(expected).max()
            np.testing.assert_allclose(gradients[name], expected, rtol=1e-4, atol=1e-5 * scale)


def test_within_micro_batches_no_pass_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_pass(*args: Any) -> None:
        raise AssertionError("a pass of its own")

    monkeypatch.setattr("dataflex.weighters.base.row_losses", no_pass)
    run(tmp_path, 4, LossWeighter(strategy="extremes", scope="micro_batch"))
    assert max(entries(tmp_path, "weight_max")) > 1.01
    with pytest.raises(TrainingError, match="scope global compares those of a step"):
        run(tmp_path, 1, LossWeighter(scope="micro_batch"))


@pytest.mark.parametrize("make", [lambda: LossWeighter(strategy="extremes"), lambda: AdaptWeighter(refresh_interval=3)])
def test_a_resumed_run_ends_as_the_unbroken_one(tmp_path: Path, make: Any) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings: dict[str, Any] = {"save_steps": 1, "eval_dataset": tiny_dataset(4, seed=50)}
    run(whole, 2, make(), **settings)
    run(broken, 2, make(), **settings)
    for name in ("checkpoint-5", "checkpoint-6"):
        for file in sorted((broken / name).glob("*")):
            file.unlink()
        (broken / name).rmdir()
    run(broken, 2, make(), resume_from_checkpoint=True, **settings)
    for key in ("loss", "weight_min", "weight_max"):
        assert entries(broken, key) == entries(whole, key)
    weights = "adapter_model.safetensors"
    assert (broken / weights).read_bytes() == (whole / weights).read_bytes()
    assert (broken / RECORD).read_bytes() == (whole / RECORD).read_bytes()


def test_the_record_has_each_row_of_each_weighed_step(tmp_path: Path) -> None:
    weighter = Recording()
    trainer = domain_trainer(tmp_path, weighter=weighter, schedule=df.Schedule(2, 4, 1))
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / RECORD).read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 5, 6]
    assert [line["rows"] for line in lines] == [trainer.curriculum.rows(step) for step in range(2, 6)]
    np.testing.assert_allclose([line["weights"] for line in lines], weighter.returned, atol=1e-6)
    for line in lines:  # the weigher is the loss itself
        np.testing.assert_allclose(line["weights"], line["losses"] / np.mean(line["losses"]), rtol=1e-4)


def test_a_record_that_a_kill_tore_goes_on_whole(tmp_path: Path) -> None:
    losses = RowLosses(np.array([2.0, float("nan")]), np.array([4, 1]), np.array([1.5, 0.5]))
    first = WeightFile(tmp_path)
    for step in (1, 2, 3):
        first.add(step, [7, 8], losses)
    whole = (tmp_path / RECORD).read_text()
    assert json.loads(whole.splitlines()[0]) == {
        "step": 1,
        "rows": [7, 8],
        "weights": [1.5, 0.5],
        "losses": [0.5, None],
    }
    (tmp_path / RECORD).write_text(whole[:-9])
    again = WeightFile(tmp_path)
    for step in (2, 3):
        again.add(step, [7, 8], losses)
    assert (tmp_path / RECORD).read_text() == whole


def test_what_does_not_fit_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="weighter 'adapt' needs an evaluation set"):
        domain_trainer(tmp_path, weighter="adapt")
    with pytest.raises(TrainingError, match="the run ends after 5 steps, before its first weighted one"):
        domain_trainer(tmp_path, weighter="loss", schedule=df.Schedule(5))


def test_rows_are_those_of_static_training(tmp_path: Path) -> None:
    static = domain_trainer(tmp_path, schedule=df.Schedule(12))
    weighted = domain_trainer(tmp_path, weighter="loss", schedule=df.Schedule(4, 8, 1))
    assert [weighted.curriculum.rows(step) for step in range(12)] == [
        static.curriculum.rows(step) for step in range(12)
    ]
    assert "weights from step 5 on" in weighted.curriculum.plan()
    assert weighted.curriculum.epoch_steps == 6
