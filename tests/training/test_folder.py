from __future__ import annotations

import logging
import signal

import pytest

from dataflex.curriculum.schedule import Schedule
from dataflex.errors import CheckpointError, DataflexError, TrainingError
from dataflex.selectors.less import LessSelector
from dataflex.selectors.random import RandomSelector
from dataflex.training.arguments import TrainingArguments
from dataflex.training.folder import begun, check_output_dir, exclusive, folders_of
from dataflex.utils.distributed import Ranks
from dataflex.utils.lock import LOCK_FILE, locked
from helpers.runs import tiny_trainer

SHORT = {"selector": RandomSelector(), "schedule": Schedule(warmup_step=3), "save_steps": 1}


def test_two_runs_in_one_folder_or_cache_are_refused(tmp_path):
    cached = LessSelector(gradient_type="sgd", cache_dir=tmp_path / "cache", proj_dim=64)
    for folder in ("out", "cache"):
        with (
            locked(tmp_path / folder),
            pytest.raises(DataflexError, match=f"{folder} is in use by another run: process"),
        ):
            tiny_trainer(tmp_path / "out", selector=cached).train()
    assert not list(tmp_path.iterdir())


def test_a_run_leaves_no_lock_and_folders_are_counted_once(tmp_path):
    tiny_trainer(tmp_path / "out", **SHORT).train()
    assert not (tmp_path / "out" / LOCK_FILE).exists()
    with exclusive([tmp_path / "out", tmp_path / "x" / ".." / "out"], Ranks()):
        assert (tmp_path / "out" / LOCK_FILE).exists()
    assert folders_of(tmp_path, LessSelector(cache_dir=tmp_path)) == [tmp_path, tmp_path]


def test_the_next_run_removes_what_a_killed_one_left(tmp_path, caplog):
    out = tmp_path / "out"
    tiny_trainer(out, **SHORT).train()
    (out / "checkpoint-3").rename(out / ".checkpoint-3.abcd1234.tmp")
    (out / "features").mkdir()
    (out / "features" / ".x.safetensors.abcd1234.tmp").touch()
    (out / "mine").mkdir()
    (out / "mine" / ".y.abcd1234.tmp").touch()
    with caplog.at_level(logging.INFO):
        assert tiny_trainer(out, resume_from_checkpoint=True, **SHORT).train()["steps"] == 3
    assert "removed what a killed run left half written: .checkpoint-3.abcd1234.tmp, .x.safetens" in caplog.text
    assert [path.name for path in out.rglob("*.tmp")] == [".y.abcd1234.tmp"]


def test_leftovers_alone_do_not_take_a_folder(tmp_path):
    (tmp_path / LOCK_FILE).write_text("{}", encoding="utf-8")
    (tmp_path / ".checkpoint-1.abcd1234.tmp").mkdir()
    assert tiny_trainer(tmp_path, **SHORT).train()["steps"] == 3


@pytest.mark.parametrize(
    ("made", "settings", "problem"),
    [
        ("file", {}, "/out: .*/out is a file"),
        ("parent", {}, "/out/deep: .*/out is a file"),
        ("folder", {}, "the output folder .* is not empty"),
        ("nothing", {"resume_from_checkpoint": "nowhere"}, "there is no folder nowhere"),
        ("folder", {"resume_from_checkpoint": "."}, "is not empty"),
        ("folder", {"overwrite_output_dir": True}, None),
        ("folder", {"resume_from_checkpoint": True}, None),
        ("nothing", {}, None),
    ],
)
def test_a_folder_that_cannot_be_used_is_found_without_touching_it(tmp_path, made, settings, problem):
    out = tmp_path / "out"
    if made in ("file", "parent"):
        out.touch()
    elif made == "folder":
        (out / "a").mkdir(parents=True)
    args = TrainingArguments(output_dir=out / "deep" if made == "parent" else out, **settings)
    if problem is None:
        check_output_dir(args)
    else:
        with pytest.raises(TrainingError, match=problem) as caught:
            check_output_dir(args)
        assert caught.value.hint or isinstance(caught.value, CheckpointError)
    assert [path.name for path in tmp_path.rglob("*")] == {"folder": ["out", "a"], "nothing": []}.get(made, ["out"])


def test_a_new_run_has_no_date_to_keep(tmp_path):
    assert begun(TrainingArguments(output_dir=tmp_path)) is None
    assert begun(TrainingArguments(output_dir=tmp_path, resume_from_checkpoint=True)) is None


@pytest.mark.parametrize("date", ["yesterday", 3])
def test_an_odd_date_in_a_checkpoint_is_named(tmp_path, monkeypatch, date):
    source = tmp_path / "checkpoint-1"
    source.mkdir()
    monkeypatch.setattr("dataflex.training.folder.read_state", lambda directory: {"date": date})
    with pytest.raises(CheckpointError, match=r"the date in the state of .*checkpoint-1 is damaged"):
        begun(TrainingArguments(output_dir=tmp_path, resume_from_checkpoint=source))


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(128 + signal.SIGTERM)])
def test_an_interrupted_run_says_how_it_goes_on(tmp_path, caplog, monkeypatch, stop):
    trainer = tiny_trainer(tmp_path, **SHORT)
    interrupt_at(trainer, 2, stop, monkeypatch)
    with pytest.raises(type(stop)):
        trainer.train()
    assert f"stopped; checkpoint-2 in {tmp_path} holds the run: resume_from_checkpoint: true goes on" in caplog.text
    assert not (tmp_path / LOCK_FILE).exists()
    assert tiny_trainer(tmp_path, resume_from_checkpoint=True, **SHORT).train()["steps"] == 3


def test_a_run_that_goes_on_from_another_folder_and_stops_at_once_names_that_checkpoint(tmp_path, monkeypatch):
    tiny_trainer(tmp_path / "a", **SHORT).train()
    source = tmp_path / "a" / "checkpoint-2"
    trainer = tiny_trainer(tmp_path / "b", resume_from_checkpoint=source, **SHORT)
    interrupt_at(trainer, 3, DataflexError("stopped here"), monkeypatch)
    with pytest.raises(DataflexError, match="stopped here") as caught:
        trainer.train()
    assert f"resume_from_checkpoint: {source} goes on from it" in caught.value.hint


def test_a_full_disk_says_how_the_run_goes_on(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, **SHORT)
    interrupt_at(trainer, 2, OSError(28, "No space left on device"), monkeypatch, where="save_checkpoint")
    with pytest.raises(DataflexError, match=r"cannot write .*checkpoint-2: the disk is full") as caught:
        trainer.train()
    assert "free some space" in caught.value.hint
    assert "checkpoint-1 in" in caught.value.hint
    monkeypatch.undo()
    assert tiny_trainer(tmp_path, resume_from_checkpoint=True, **SHORT).train()["steps"] == 3


def interrupt_at(trainer, step, error, monkeypatch, where="after_step"):
    """Raise after a step, or in the middle of its checkpoint."""
    if where == "save_checkpoint":
        save = type(trainer.model).save_pretrained

        def fail(model, folder, *args, **kwargs):
            if trainer.state.step == step:
                raise error
            save(model, folder, *args, **kwargs)

        monkeypatch.setattr(type(trainer.model), "save_pretrained", fail)
        return
    after = trainer._after_step

    def stop(values, phase):
        after(values, phase)
        if trainer.state.step == step:
            raise error

    monkeypatch.setattr(trainer, "_after_step", stop)


def test_nothing_is_said_before_there_is_a_checkpoint(tmp_path, caplog, monkeypatch):
    trainer = tiny_trainer(tmp_path, **(SHORT | {"save_steps": 3}))
    interrupt_at(trainer, 1, KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert "stopped" not in caplog.text
