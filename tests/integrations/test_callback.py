"""What the callback in a trainer of transformers does beside selecting: trackers, checkpoints, the ends of a run."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from dataflex.curriculum.schedule import Schedule
from dataflex.errors import DataflexError, SelectionError
from dataflex.integrations.run import STATE_KEY
from dataflex.selectors.base import Selection, SelectionContext
from dataflex.selectors.less import LessSelector
from dataflex.selectors.random import RandomSelector
from dataflex.utils.lock import LOCK_FILE
from helpers import foreign
from helpers.foreign import curriculum, inside
from helpers.locks import holder


def test_the_trackers_of_a_trainer_have_the_numbers_of_a_selection(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = curriculum(LessSelector(proj_dim=256))
    args = foreign.arguments(tmp_path, report_to=["tensorboard"])
    trainer = inside(found, args)
    found.report_to(trainer)
    trainer.train()
    events = accumulators.EventAccumulator(str(next(tmp_path.rglob("events.out.tfevents.*"))))
    events.Reload()
    assert [event.step for event in events.Scalars("train/selection_round")] == [2, 5]
    means = [entry["selection_mean_score"] for entry in trainer.state.log_history if "selection_round" in entry]
    assert [event.value for event in events.Scalars("train/selection_mean_score")] == pytest.approx(means)
    assert len(events.Scalars("train/loss")) == 8


def test_a_checkpoint_before_each_selection_where_one_is_asked_for(tmp_path: Path) -> None:
    inside(curriculum(), foreign.arguments(tmp_path / "plain")).train()
    assert not [*(tmp_path / "plain").glob("checkpoint-*")]
    asked = curriculum(save_before_selection=True, schedule=Schedule(0, 2, 4))
    inside(asked, foreign.arguments(tmp_path / "asked")).train()
    saved = {folder.name: folder for folder in (tmp_path / "asked").glob("checkpoint-*")}
    assert sorted(saved) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    state = json.loads((saved["checkpoint-4"] / "trainer_state.json").read_text())
    assert state["stateful_callbacks"][STATE_KEY]["curriculum"]["round"] == 2


def test_no_trainer_reads_on_behind_the_end_of_a_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = inside(curriculum(), foreign.arguments(tmp_path))
    reads = []
    read = trainer.get_batch_samples
    monkeypatch.setattr(trainer, "get_batch_samples", lambda *args: reads.append(read(*args)) or reads[-1])
    trainer.train()
    assert [len(batches) for batches, _ in reads] == [2] * 8


class Closing(RandomSelector):
    """Counts how often it was closed; raises in the round that it is told."""

    closed = 0
    raises_in = 0

    def select(self, context: SelectionContext) -> Selection:
        if context.round == self.raises_in:
            raise SelectionError("no more rows today")
        return super().select(context)

    def close(self) -> None:
        self.closed += 1


class Raising(transformers.TrainerCallback):
    """Breaks a trainer in a step that is neither the first nor the last of a phase."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise RuntimeError("out of memory")


def test_a_selector_is_closed_once_however_training_ends(tmp_path: Path) -> None:
    args = foreign.arguments(tmp_path)
    well, failing, broken, dropped = Closing(), Closing(), Closing(), Closing()
    inside(curriculum(well), args).train()
    failing.raises_in = 2
    with pytest.raises(SelectionError, match="no more rows today"):
        inside(curriculum(failing), args).train()
    found = curriculum(broken)
    trainer = foreign.trainer(args, found.train_dataset, [found.callback, Raising()])
    with pytest.raises(RuntimeError, match="out of memory"), found:
        trainer.train()
    assert [each.closed for each in (well, failing, broken)] == [1, 1, 1]
    found = curriculum(dropped)
    trainer = foreign.trainer(args, found.train_dataset, [found.callback, Raising()])
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    assert dropped.closed == 0
    del found, trainer
    gc.collect()
    assert dropped.closed == 1


def test_a_trainer_that_failed_trains_again(tmp_path: Path) -> None:
    selector = Closing()
    trainer = inside(curriculum(selector), foreign.arguments(tmp_path))
    trainer.add_callback(breaking := Raising())
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.train()
    trainer.remove_callback(breaking)
    trainer.train()
    assert (trainer.state.global_step, selector.closed) == (8, 2)


class Stop(transformers.TrainerCallback):
    """Looks at the folder of a run in its third step, and ends the run by an error."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            assert (Path(args.output_dir) / LOCK_FILE).exists()
            raise KeyboardInterrupt


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path: Path) -> None:
    trainer = inside(curriculum(), foreign.arguments(tmp_path))
    with holder(tmp_path) as other:
        with pytest.raises(DataflexError, match=f"is in use by another run: process {other.pid} on"):
            trainer.train()
        other.kill()
    trainer.train()
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("other", ["out", "another"])
def test_folders_that_a_run_of_the_same_process_was_ended_in_are_taken_over(tmp_path: Path, other: str) -> None:
    def trainer(name: str) -> transformers.Trainer:
        selector = LessSelector(proj_dim=256, cache_dir=tmp_path / "cache")
        return inside(curriculum(selector), foreign.arguments(tmp_path / name))

    ended = trainer("out")
    ended.add_callback(Stop)
    with pytest.raises(KeyboardInterrupt):
        ended.train()
    assert all((tmp_path / name / LOCK_FILE).exists() for name in ("out", "cache"))
    half = tmp_path / "cache" / "scores" / ".step-2.npy.0123abcd.tmp"
    half.parent.mkdir(exist_ok=True)
    half.touch()
    trainer(other).train()
    assert not half.exists()
    assert not [*tmp_path.rglob(LOCK_FILE)]
