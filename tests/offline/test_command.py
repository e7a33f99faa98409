"""``dataflex select``: from a configuration to a subset on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import dataflex
from dataflex.cli import cli
from dataflex.config import RunConfig
from dataflex.data.encoding import Encoded
from dataflex.data.sources import load_samples
from dataflex.data.templates import ChatTemplate
from dataflex.offline.run import ACTING_KEYS, NEUTRAL_KEYS
from dataflex.testing import tiny_samples, tiny_tokenizer
from dataflex.types import Sample
from dataflex.utils.distributed import Ranks
from helpers.rows import ROWS_CONFIG, rows_project

CONFIG = {
    **ROWS_CONFIG,
    "component_name": "less",
    "component_params": {"gradient_type": "sgd", "proj_dim": 256},
    "update_step": 1,
    "update_times": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data of 20 rows and a configuration."""
    root = rows_project(tmp_path_factory.mktemp("project"), CONFIG, rows=20, targets=4)
    (root / "dataset_info.json").write_text(json.dumps({"train": {"file_name": "rows.jsonl"}}), encoding="utf-8")
    return root


@pytest.fixture
def folder(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for outputs; the working directory is the project's."""
    monkeypatch.chdir(project)
    return tmp_path


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["select", "run.yaml", *map(str, arguments)], prog_name="dataflex")


def test_a_subset_comes_with_scores_and_a_card_and_can_be_trained_on(project: Path, folder: Path) -> None:
    out = folder / "subset.jsonl"
    done = run("--num", "25%", "-o", out)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"5 of 20 rows are in {out}\n"
    idle = "logging_steps, per_device_train_batch_size, learning_rate, update_step"
    assert f"these keys act on training only: {idle}\n" in done.stderr
    assert {path.name for path in folder.iterdir()} == {
        "subset.jsonl",
        "subset.report.html",
        "subset.scores.parquet",
        "subset.card.md",
        "subset.work",
    }
    written = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    source = [json.loads(line) for line in (project / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    notes = [row.pop("_dataflex") for row in written]
    assert written == [source[note["row"]] for note in notes]
    scores = pq.read_table(folder / "subset.scores.parquet").to_pylist()
    assert len(scores) == 20
    assert [row["row"] for row in sorted(scores, key=lambda row: (-row["score"], row["index"]))[:5]] == [
        note["row"] for note in notes
    ]
    assert [note["score"] for note in notes] == [scores[note["row"]]["score"] for note in notes]
    card = (folder / "subset.card.md").read_text(encoding="utf-8")
    for text in ("# subset.jsonl", "| rows | 5 of 20 candidates |", "| task | candidates |", "component_name: less"):
        assert text in card
    results = dataflex.train(
        "run.yaml", "train_type=static", f"dataset={out}", f"output_dir={folder / 'trained'}", "num_train_epochs=1"
    )
    assert results["train_samples"] == 5
    assert (folder / "trained" / "adapter_model.safetensors").exists()
    assert [sample.messages for sample in load_samples(out)] == [
        sample.messages for sample in load_samples([source[note["row"]] for note in notes])
    ]


def test_keys_that_act_exist() -> None:
    assert RunConfig.model_fields.keys() >= ACTING_KEYS | NEUTRAL_KEYS
    assert not ACTING_KEYS & NEUTRAL_KEYS


def test_python_and_the_command_line_select_the_same(project: Path, folder: Path) -> None:
    assert run("--num", "3", "-o", folder / "s.jsonl", "-q").exit_code == 2  # -q belongs before the command
    assert run("--num", "3", "-o", folder / "s.jsonl").exit_code == 0
    from dataflex.config import load_config
    from dataflex.training.run import build_model

    chosen = dataflex.select(
        build_model(load_config("run.yaml")),
        tiny_tokenizer(),
        "rows.jsonl",
        "target.jsonl",
        num_samples=3,
        template="chatml",
        gradient_type="sgd",
        proj_dim=256,
    )
    lines = (folder / "s.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["_dataflex"]["row"] for line in lines] == chosen.rows.tolist()
    scores = [json.loads(line)["_dataflex"]["score"] for line in lines]
    np.testing.assert_allclose(scores, chosen.scores[chosen.indices], atol=1e-6)


def test_nothing_is_overwritten_unasked(project: Path, folder: Path) -> None:
    card = folder / "s.card.md"
    card.write_text("mine", encoding="utf-8")
    done = run("--num", "3", "-o", folder / "s.jsonl", "component_name=random", "component_params={}")
    assert done.exit_code == 1
    assert f"{card} would be overwritten" in done.stderr
    assert [path.name for path in folder.iterdir()] == ["s.card.md"]
    assert card.read_text(encoding="utf-8") == "mine"
    again = run("--num", "3", "-o", folder / "s.jsonl", "--overwrite", "component_name=random", "component_params={}")
    assert again.exit_code == 0
    assert json.loads((folder / "s.jsonl").read_text(encoding="utf-8").splitlines()[0])["_dataflex"]["score"] is None


def test_a_dry_run_predicts_and_leaves_nothing(project: Path, folder: Path) -> None:
    done = run("--num", "3", "--dry-run", "-o", folder / "s.jsonl")
    assert done.exit_code == 0, done.output
    for text in (
        "training gradients: 20 rows",
        "rows/s",
        "predicted time:",
        "peak memory",
        "stored on disk: 0.0 MiB",
        "scoring: projected",
    ):
        assert text in done.stdout
    assert list(folder.iterdir()) == []


def test_a_dry_run_reads_some_rows_that_stand_for_all(
    project: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenised: list[int] = []
    encode = ChatTemplate.encode_batch

    def counted(self: ChatTemplate, samples: Sequence[Sample], *rest: Any) -> list[Encoded]:
        tokenised.extend(sample.row for sample in samples)
        return encode(self, samples, *rest)

    monkeypatch.setattr(ChatTemplate, "encode_batch", counted)
    monkeypatch.setattr("dataflex.training.run.OUTLINED", 7)
    done = run("--num", "3", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "training gradients: 20 rows" in done.stdout
    assert len(tokenised) <= 14
    assert {0, 19} <= set(tokenised)


def test_a_checkpoint_gives_the_moments_of_adam(project: Path, folder: Path) -> None:
    dataflex.train(
        "run.yaml", "train_type=static", "save_steps=5", f"output_dir={folder / 'warm'}", "num_train_epochs=1"
    )
    adam = ["component_params.gradient_type=adam", "-o", folder / "s.jsonl", "--num", "3"]
    refused = run(*adam)
    assert refused.exit_code == 1
    assert "there is no optimizer" in refused.stderr
    assert run(*adam, "--checkpoint", folder / "warm" / "checkpoint-5").exit_code == 0
    assert str(folder / "warm" / "checkpoint-5") in (folder / "s.card.md").read_text(encoding="utf-8")


def test_a_dry_run_of_several_processes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflex.offline.run.launched_ranks", lambda: Ranks(0, 2))
    assert "predicts the time of one process; 2 were started" in run("--num", "3", "--dry-run").stderr


def test_rows_that_only_a_registry_makes_readable_become_messages(project: Path, folder: Path) -> None:
    """The subset is trained on without the registry."""
    samples = tiny_samples(6)
    rows = [{"frage": sample.messages[0]["content"], "antwort": sample.reference} for sample in samples]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    entry = {"file_name": "rows.json", "columns": {"prompt": "frage", "response": "antwort"}}
    (folder / "dataset_info.json").write_text(json.dumps({"deutsch": entry}), encoding="utf-8")
    mapped = ["dataset=deutsch", f"dataset_dir={folder}", f"eval_dataset={project / 'target.jsonl'}"]
    done = run("--num", "2", "-o", folder / "s.jsonl", *mapped)
    assert done.exit_code == 0, done.output
    for line in (folder / "s.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        source = rows[row["_dataflex"]["row"]]
        assert [turn["content"] for turn in row["messages"]] == [source["frage"], source["antwort"]]
    assert len(load_samples(folder / "s.jsonl")) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--num", "5%"], 2, "-o / --output is needed"),
        (["--num", "some", "-o", "s.jsonl"], 2, "expected a number (500) or a share (5%), got 'some'"),
        (["-o", "s.jsonl"], 2, "Missing option '-n' / '--num'"),
        (["--num", "3", "-o", "s.json"], 1, "must be a .jsonl file"),
        (["--num", "21", "-o", "s.jsonl"], 1, "there are 20 candidates"),
        (["--num", "101%", "-o", "s.jsonl"], 1, "num_samples 1.01 is not a share"),
        (
            ["--num", "3", "-o", "s.jsonl", "eval_dataset=null", "train_type=static"],
            1,
            "'less' selects for one; set it",
        ),
        (["--num", "3", "-o", "s.jsonl", "component_name=null", "train_type=static"], 1, "the run names no selector"),
    ],
)
@pytest.mark.usefixtures("project")
def test_wrong_use_is_said(folder: Path, arguments: list[str], status: int, message: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, message in done.output) == (status, True), done.output
