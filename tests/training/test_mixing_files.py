"""Mixtures and weights from a YAML file, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dataflex as df
from dataflex.doctor.run import diagnose_file
from dataflex.errors import DataError
from dataflex.testing import tiny_project

MIX: dict[str, Any] = {"train_type": "dynamic_mix", "component_name": "odm", "domain_column": "task"}
WEIGHT: dict[str, Any] = {
    "train_type": "dynamic_weight",
    "component_name": "loss",
    "train_step": 5,
    "update_step": 0,
    "update_times": 1,
    "num_train_epochs": 3.0,
}


def entries(folder: Path, key: str) -> list[Any]:
    lines = (folder / "out" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [found[key] for found in map(json.loads, lines) if key in found]


def mixture(folder: Path, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "mixtures" / f"step-{step}.json").read_text(encoding="utf-8"))
    return found


def split(folder: Path) -> list[str]:
    """The training rows of a tiny project as two datasets of 16 and 8 rows."""
    rows = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    files = {"large.jsonl": rows[:16], "small.jsonl": rows[16:]}
    for name, own in files.items():
        (folder / name).write_text("".join(own), encoding="utf-8")
    return [str(folder / name) for name in files]


def test_domains_of_a_column(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="dataflex"):
        results = df.train(tiny_project(tmp_path, **MIX))
    assert (results["steps"], results["mixtures"]) == (6, 2)
    assert sorted(mixture(tmp_path, 2)["domains"]) == ["capital", "reverse", "sum"]
    assert "mixtures at steps 2, 4" in caplog.text
    assert "odm: 2 mixtures" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_datasets_are_domains_in_their_order_and_a_replay_is_the_same(tmp_path: Path) -> None:
    path = tiny_project(tmp_path)
    shares = {"dataset": split(tmp_path), "domain_column": None, "init_mixture_proportions": [0.25, 0.75]}
    df.train(tiny_project(tmp_path, **(MIX | shares)))
    first = mixture(tmp_path, 0)
    assert (first["proportions"], first["counts"], first["rows"]) == ([0.25, 0.75], [2, 6], [16, 8])
    losses = entries(tmp_path, "loss")
    replay = (tmp_path / "out" / "config.yaml").read_text(encoding="utf-8")
    path.write_text(replay, encoding="utf-8")
    df.train(path)
    assert entries(tmp_path, "loss") == losses


def test_a_static_mixture_over_the_length_of_the_data(tmp_path: Path) -> None:
    path = tiny_project(tmp_path)
    keys = {"dataset": split(tmp_path), "train_type": "dynamic_mix", "static_mix": True, "component_name": None}
    keys |= {"warmup_step": 0, "update_step": 0, "mixture_sample_rule": "uniform"}
    path = tiny_project(tmp_path, **keys)
    assert df.train(path)["steps"] == 6
    assert mixture(tmp_path, 0)["counts"] == [12, 12]


def test_weights_begin_after_the_warm_up(tmp_path: Path) -> None:
    results = df.train(tiny_project(tmp_path, **WEIGHT))
    assert results["steps"] == 5
    assert len(entries(tmp_path, "loss")) == 5
    assert len(entries(tmp_path, "weight_median")) == 3
    assert "weights of samples" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_without_train_step_the_data_are_gone_through(tmp_path: Path) -> None:
    keys = WEIGHT | {"train_step": None, "num_train_epochs": 1.5}
    assert df.train(tiny_project(tmp_path, **keys))["steps"] == 9


def test_wrong_shares_are_found_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_model(*args: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("dataflex.training.run.build_model", no_model)
    with pytest.raises(DataError, match="names domains that there are not: quotient"):
        df.train(tiny_project(tmp_path, **MIX, init_mixture_proportions={"quotient": 1.0}))


@pytest.mark.parametrize(
    ("keys", "name", "detail"),
    [
        (MIX, "mixture", "mixtures cost no forward pass"),
        (MIX | {"component_name": "doremi", "component_params": {"eval_samples": 3}}, "mixture", "of 36 rows"),
        (WEIGHT, "weights", "in 3 of 5 steps; they add forward passes of 12 rows"),
    ],
)
def test_the_doctor_says_what_it_costs(tmp_path: Path, keys: dict[str, Any], name: str, detail: str) -> None:
    checks = {check.name: check for check in diagnose_file(tiny_project(tmp_path, **keys))}
    assert detail in checks[name].detail
    assert [check for check in checks.values() if check.status == "fail"] == []
