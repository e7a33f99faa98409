"""Runs on mixtures of domains: in the loop, by several ranks, over a restart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dataflex as df
from dataflex.errors import DataError, SelectionError, TrainingError
from dataflex.mixers.doremi import DoReMiMixer
from dataflex.mixers.odm import OdmMixer
from dataflex.mixers.static import StaticMixer
from dataflex.training.trainer import Trainer
from helpers.mixing import domain_dataset, domain_trainer


def entries(folder: Path, key: str) -> list[Any]:
    lines = (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [found[key] for found in map(json.loads, lines) if key in found]


def mixtures(folder: Path) -> dict[str, Any]:
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "mixtures").iterdir())}


def test_odm_mixes_by_the_losses_that_training_computed(tmp_path: Path) -> None:
    trainer = domain_trainer(tmp_path, mixer="odm", schedule=df.Schedule(2, 1, 6))
    seen: list[np.ndarray] = []
    real = trainer.curriculum.count_losses  # type: ignore[attr-defined]

    def count(step: int, found: Any) -> None:
        seen.append(np.stack([found.sums, found.tokens.astype(float)]))
        real(step, found)

    trainer.curriculum.count_losses = count  # type: ignore[attr-defined]
    results = trainer.train()
    assert (results["mixtures"], results["selections"], results["steps"]) == (6, 0, 8)
    losses = entries(tmp_path, "loss")
    np.testing.assert_allclose([found[0].sum() / found[1].sum() for found in seen], losses, rtol=1e-6)
    assert [*mixtures(tmp_path)] == [f"step-{step}.json" for step in (0, *range(2, 8))]
    shares = np.array([mixture["proportions"] for mixture in mixtures(tmp_path).values()])
    assert shares[0].tolist() == [0.5, 1 / 3, 1 / 6]
    np.testing.assert_allclose(shares[1:4], 1 / 3, rtol=1e-12)  # sqrt(ln 3 / 3t) is above 1 / 3 until t = 4
    assert abs(shares[4:] - 1 / 3).min() > 1e-6
    assert shares[4:].min() >= math.sqrt(math.log(3) / 18) - 1e-12
    assert entries(tmp_path, "mixture/b") == shares[:, 1].tolist()


def test_doremi_gives_more_to_a_domain_that_the_model_has_unlearned(tmp_path: Path) -> None:
    """A planted hard domain: before the run, the adapter was trained away from its rows."""
    trainer = domain_trainer(
        tmp_path,
        mixer=DoReMiMixer(reweight_eta=1.0),
        sizes={"a": 8, "b": 8, "c": 8},
        learning_rate=1e-5,
    )
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(20):
        for row in range(8, 16):
            example = trainer.train_dataset[row]
            ids, labels = torch.tensor([example.input_ids]), torch.tensor([example.labels])
            (-trainer.model(ids, labels=labels).loss).backward()
            optimizer.step()
            optimizer.zero_grad()
    trainer.train()
    shares = entries(tmp_path, "mixture/b")
    assert shares[0] == pytest.approx(1 / 3)
    assert shares[0] < shares[1] < shares[2]
    facts = mixtures(tmp_path)["step-2.json"]
    assert facts["losses_before"][1] > max(facts["losses_before"][0], facts["losses_before"][2])
    assert max(facts["report"]["excess_losses"]) == facts["report"]["excess_losses"][1]
    rows = mixtures(tmp_path)["step-5.json"]["counts"]
    assert rows[1] > max(rows[0], rows[2])


def test_the_rows_of_another_dataset_measure_the_domains(tmp_path: Path) -> None:
    measured = domain_dataset({"x": 2, "y": 2, "z": 2}, seed=50)  # other names: they stand for a, b, c in order
    trainer = domain_trainer(tmp_path, mixer="doremi", mixer_eval_dataset=measured)
    mixture = trainer.curriculum.mixture  # type: ignore[attr-defined]
    assert [(domain.name, domain.rows.tolist()) for domain in mixture.measured_domains] == [
        ("a", [0, 1]),
        ("b", [2, 3]),
        ("c", [4, 5]),
    ]
    trainer.train()
    with pytest.raises(DataError, match="mixer_eval_dataset has rows of x, y, expected rows of each domain"):
        domain_trainer(tmp_path, mixer="doremi", mixer_eval_dataset=domain_dataset({"x": 2, "y": 2}, seed=50))


@pytest.mark.parametrize("mixer", ["odm", "doremi", "random"])
def test_a_resumed_run_ends_as_the_unbroken_one(tmp_path: Path, mixer: str) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings: dict[str, Any] = {"mixer": mixer, "save_steps": 1}
    domain_trainer(whole, **settings).train()
    domain_trainer(broken, **settings).train()
    for name in ("checkpoint-5", "checkpoint-6", "checkpoint-7", "checkpoint-8"):
        for file in sorted((broken / name).glob("*")):
            file.unlink()
        (broken / name).rmdir()
    for file in ("step-5.json",):
        (broken / "mixtures" / file).unlink()
    domain_trainer(broken, resume_from_checkpoint=True, **settings).train()  # from step 4, within the second phase
    assert entries(broken, "loss") == entries(whole, "loss")
    assert mixtures(broken) == mixtures(whole)
    weights = "adapter_model.safetensors"
    assert (broken / weights).read_bytes() == (whole / weights).read_bytes()


def test_another_mixture_is_another_run(tmp_path: Path) -> None:
    domain_trainer(tmp_path, mixer="odm").train()
    with pytest.raises(TrainingError, match="belongs to another run") as caught:
        domain_trainer(
            tmp_path,
            mixer=OdmMixer(alpha=0.5),
            init_mixture_proportions=[0.2, 0.2, 0.6],
            resume_from_checkpoint=True,
        ).train()
    assert "mixer_params.alpha 0.9 -> 0.5" in str(caught.value)
    assert "mixture.initial" in str(caught.value)


def test_a_static_mixture_needs_no_schedule(tmp_path: Path) -> None:
    trainer = domain_trainer(tmp_path, mixer=StaticMixer(proportions=[0.25, 0.5, 0.25]), schedule=df.Schedule(6))
    assert trainer.train()["mixtures"] == 0
    (facts,) = mixtures(tmp_path).values()
    assert facts["counts"] == [6, 12, 6]


def without_schedule(folder: Path, **component: Any) -> Trainer:
    found = domain_trainer(folder, mixer="static")
    return Trainer(found.model, found.tokenizer, found.train_dataset, args=found.args, **component)


def test_what_does_not_fit_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="a run with a mixer needs a schedule, which says when to mix"):
        without_schedule(tmp_path, mixer="odm")
    assert without_schedule(tmp_path, mixer="static").total_steps == 6
    with pytest.raises(TrainingError, match="one of selector, mixer and weighter, and selector and mixer were given"):
        without_schedule(tmp_path, mixer="odm", selector="random")
    with pytest.raises(SelectionError, match="mixer: expected the name of a mixer or one that is built, got the class"):
        without_schedule(tmp_path, mixer=OdmMixer)
    with pytest.raises(TrainingError, match="the schedule has no phase for the mixer 'odm'"):
        domain_trainer(tmp_path, mixer="odm", schedule=df.Schedule(4))
    with pytest.raises(DataError, match="init_mixture_proportions has 2 numbers for 3 domains: a, b, c"):
        domain_trainer(tmp_path, mixer="odm", init_mixture_proportions=[0.5, 0.5])
    with pytest.raises(DataError, match="domains without rows: d"):
        domain_trainer(
            tmp_path, mixer="odm", domains=["d", "a", "b", "c"], init_mixture_proportions=[0.1, 0.3, 0.3, 0.3]
        )


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({}, [0.5, 1 / 3, 1 / 6]),
        ({"mixture_sample_rule": "uniform"}, [1 / 3] * 3),
        ({"init_mixture_proportions": [10, 20, 70]}, [0.1, 0.2, 0.7]),
        ({"init_mixture_proportions": {"c": 0.75, "a": 0.25}}, [0.25, 0.0, 0.75]),
        ({"init_mixture_proportions": [0.1, 0.2, 0.7], "mixture_sample_rule": "stratified"}, [0.5, 1 / 3, 1 / 6]),
        ({"mixer": OdmMixer(initial_proportions=[0.1, 0.2, 0.7])}, [0.1, 0.2, 0.7]),
    ],
)
def test_what_a_run_begins_with(tmp_path: Path, args: dict[str, Any], expected: list[float]) -> None:
    trainer = domain_trainer(tmp_path, **({"mixer": "odm"} | args))
    np.testing.assert_allclose(trainer.curriculum.mixture.initial, expected, rtol=1e-12)  # type: ignore[attr-defined]


def test_domains_may_be_values_of_a_column(tmp_path: Path) -> None:
    trainer = domain_trainer(tmp_path, mixer="odm", domain_column="task")
    names = [domain.name for domain in trainer.curriculum.mixture.domains]  # type: ignore[attr-defined]
    assert sorted(names) == ["capital", "reverse", "sum"]
