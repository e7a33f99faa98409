from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataflex.curriculum.schedule import Schedule
from dataflex.errors import CheckpointError
from dataflex.models.identity import file_digest
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training import checkpoint
from helpers.runs import tiny_trainer

BEST = {
    "selector": RandomSelector(),
    "schedule": Schedule(warmup_step=2),
    "eval_strategy": "steps",
    "eval_steps": 1,
    "load_best_model_at_end": True,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A checkpoint of a model alone."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoint-3"
    checkpoint.save_checkpoint(folder, tiny_lora(tiny_model()), tiny_tokenizer(), step=3)
    return folder


def test_a_damaged_best_model_is_never_loaded(tmp_path):
    tiny_trainer(tmp_path, **BEST).train()
    weights = tmp_path / "best_model" / "adapter_model.safetensors"
    published = (tmp_path / "adapter_model.safetensors").read_bytes()
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    with pytest.raises(CheckpointError, match=r"best model .* is damaged: .* was altered") as caught:
        tiny_trainer(tmp_path, resume_from_checkpoint=True, **BEST).train()
    assert "load_best_model_at_end: false" in str(caught.value.hint)
    trainer = tiny_trainer(tmp_path / "other", **BEST)
    damaged = trainer.checkpointer.args.output_dir / "best_model"
    damaged.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="is damaged: its manifest cannot be read"):
        trainer.checkpointer.load_best()
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == published


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "lists no files"),
        ("{}", "lists no files"),
        ('{"files": []}', "lists no files"),
        ('{"files": {"a": 1}}', "lists no files"),
        ('{"step": "7", "files": {"a": "b"}}', "gives the step as '7'"),
        ('{"files": {"a": "b"}}', "a is missing"),
        ('{"files"', "not valid JSON"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_an_odd_manifest_is_named(tmp_path, content, problem):
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    assert problem in str(checkpoint.damage(tmp_path))


def test_a_folder_in_the_place_of_a_file_is_named(saved, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "manifest.json").write_text('{"step": 1, "files": {"a": "b"}}', encoding="utf-8")
    assert checkpoint.damage(tmp_path) == "a cannot be read: it is a folder, not a file: " + str(tmp_path / "a")
    assert checkpoint.damage(saved) is None
    assert checkpoint.noted_step(saved) == 3


@pytest.mark.parametrize("name", ["checkpoint-2²", "checkpoint-٣", "checkpoint--1", "checkpoint-1_0", "checkpoint-x"])
def test_only_names_with_a_plain_number_are_checkpoints(tmp_path, name):
    for folder in (name, "checkpoint-10", "checkpoint-9"):
        (tmp_path / folder).mkdir()
    (tmp_path / "checkpoint-11").touch()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]


def test_the_state_must_be_a_mapping(saved, tmp_path):
    (tmp_path / "state.json").write_text("[1]", encoding="utf-8")
    sums = {"state.json": file_digest(tmp_path / "state.json")}
    (tmp_path / "manifest.json").write_text(json.dumps({"step": 1, "files": sums}), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is list, expected a mapping"):
        checkpoint.read_state(tmp_path)
