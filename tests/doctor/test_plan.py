"""``dataflex train CONFIG --dry-run``: what a run would do, and the forward passes that it adds."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from dataflex.cli import cli
from helpers.doctor import write_project


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path, gradient_accumulation_steps=2)


def said(*overrides: str) -> list[str]:
    done = CliRunner().invoke(cli, ["train", "run.yaml", "--dry-run", *overrides])
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_steps_and_selections(project: Path) -> None:
    lines = said()
    assert lines[0] == "7 steps of 4 rows; 2 selections of up to 12 of 12"
    assert "dataflex select" in lines[1]
    assert not (project / "out").exists()
    done = CliRunner().invoke(cli, ["train", "run.yaml", "--dry-run", "update_step=7"])
    assert done.exit_code == 1
    assert "the selections do not fit: 15 steps of 4 rows; 2 selections of up to 28 of 12" in done.output


@pytest.mark.parametrize(
    ("name", "params", "cost"),
    [
        ("doremi", "{eval_samples: 3}", "mixtures add forward passes of 24 rows"),  # 2 models, 3 rows, 2 domains, twice
        ("odm", "{}", "mixtures cost no forward pass"),
    ],
)
def test_the_passes_that_mixtures_add(name: str, params: str, cost: str) -> None:
    mixer = f"component_name={name}", f"component_params={params}"
    assert said("train_type=dynamic_mix", *mixer, "dataset=train.jsonl,target.jsonl") == [
        "7 steps of 4 rows; 2 mixtures",
        f"mixture: train.jsonl 12 rows (75.0%), target.jsonl 4 rows (25.0%); {cost}",
    ]


@pytest.mark.parametrize(
    ("params", "cost"),
    [("{}", "they add forward passes of 36 rows"), ("{scope: micro_batch}", "they cost no forward pass")],
)
def test_the_passes_that_weights_add(params: str, cost: str) -> None:
    lines = said("train_type=dynamic_weight", "component_name=loss", f"component_params={params}", "train_step=10")
    assert lines == ["10 steps of 4 rows", f"weights: in 9 of 10 steps; {cost}"]
