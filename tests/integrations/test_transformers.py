"""A curriculum inside an unmodified ``transformers.Trainer``: what it trains on, seen from inside the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import ParallelismConfig
from accelerate.state import AcceleratorState
from datasets import Dataset, IterableDataset

from dataflex.curriculum.schedule import Schedule, random_order
from dataflex.errors import CheckpointError, ConfigError, DataError, SelectionError, TrainingError
from dataflex.integrations.run import STATE_KEY
from dataflex.integrations.transformers import Curriculum
from dataflex.selectors.base import Selection, SelectionContext
from dataflex.selectors.delta_loss import DeltaLossSelector
from dataflex.selectors.less import LessSelector
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_samples, tiny_tokenizer
from dataflex.training.trainer import Trainer
from helpers import foreign
from helpers.foreign import curriculum, inside
from helpers.runs import tiny_arguments, tiny_nice


def less(**params: Any) -> LessSelector:
    return LessSelector(**({"proj_dim": 256} | params))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 2])
def test_each_phase_trains_on_its_selection_and_on_nothing_else(tmp_path: Path, workers: int, size: int) -> None:
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
    trainer = inside(curriculum(less()), foreign.arguments(tmp_path, dataloader_num_workers=workers, **settings))
    seen = foreign.Seen(trainer.model, foreign.rows())
    trainer.train()
    assert trainer.state.global_step == 8
    foreign.assert_followed(seen.steps(4 // size), tmp_path, 24)


def test_many_workers_that_prefetch_much_see_no_row_of_a_later_phase(tmp_path: Path) -> None:
    args = foreign.arguments(tmp_path, max_steps=8, dataloader_num_workers=2, dataloader_prefetch_factor=8)
    found = curriculum(less(gradient_type="sgd"), schedule=Schedule(0, 1, 8))
    trainer = inside(found, args)
    seen = foreign.Seen(trainer.model, foreign.rows())
    trainer.train()
    selections = foreign.chosen(tmp_path)
    assert list(selections) == list(range(8))
    assert [sorted(step) for step in seen.steps(2)] == list(selections.values())
    assert len({tuple(rows) for rows in selections.values()}) > 3


def test_a_static_curriculum_has_the_losses_of_the_trainers_own_run(tmp_path: Path) -> None:
    rows = foreign.rows()
    found = Curriculum(rows)
    ours = inside(found, foreign.arguments(tmp_path / "ours", weight_decay=0.1, max_grad_norm=0.5))
    ours.train()
    order = random_order(24, 0, 32, seed=3).tolist()
    args = foreign.arguments(
        tmp_path / "own", train_sampling_strategy="sequential", weight_decay=0.1, max_grad_norm=0.5
    )
    own = foreign.trainer(args, [rows[row] for row in order])
    own.train()
    assert foreign.losses(ours) == foreign.losses(own)
    assert len(foreign.losses(ours)) == 8
    expected = foreign.weights(own)
    assert all(torch.equal(value, expected[name]) for name, value in foreign.weights(ours).items())


@pytest.mark.parametrize("settings", [{"train_sampling_strategy": "sequential"}, {"seed": 7, "data_seed": 3}])
def test_the_order_of_random_rows_is_what_the_trainers_arguments_say(tmp_path: Path, settings: dict[str, Any]) -> None:
    found = Curriculum(foreign.rows())
    trainer = inside(found, foreign.arguments(tmp_path, max_steps=3, **settings))
    seen = foreign.Seen(trainer.model, foreign.rows())
    trainer.train()
    drawn = range(12) if "data_seed" not in settings else random_order(24, 0, 12, seed=3).tolist()
    assert foreign.joined(seen.steps(2)) == [*drawn]


@pytest.mark.parametrize("make", [less, tiny_nice, DeltaLossSelector], ids=["less", "nice", "delta_loss"])
def test_every_round_selects_what_the_own_trainer_selects(tmp_path: Path, make: Any) -> None:
    train, held_out = tiny_dataset(24, seed=0, distinct=True), tiny_dataset(4, seed=50)
    ours = Trainer(
        tiny_lora(tiny_model()),
        tiny_tokenizer(),
        train,
        held_out,
        make(),
        schedule=foreign.SCHEDULE,
        args=tiny_arguments(tmp_path / "ours", lr_scheduler_type="linear"),
    )
    mine = foreign.Seen(ours.model, foreign.rows())
    ours.train()
    samples = tiny_samples(24, seed=0, distinct=True), tiny_samples(4, seed=50)
    raw = [[{"messages": list(map(dict, each.messages)), **each.metadata} for each in part] for part in samples]
    found = curriculum(make(), train_rows=raw[0], eval_rows=raw[1], template="chatml")
    theirs = inside(found, foreign.arguments(tmp_path / "theirs"))
    seen = foreign.Seen(theirs.model, foreign.rows())
    theirs.train()
    assert foreign.chosen(tmp_path / "theirs") == foreign.chosen(tmp_path / "ours")
    assert seen.steps(2) == mine.steps(2)
    assert foreign.losses(theirs) == pytest.approx(foreign.own_losses(tmp_path / "ours"), rel=1e-4)


@pytest.mark.parametrize("skip", [False, True], ids=["read again", "ignore_data_skip"])
def test_a_checkpoint_in_a_phase_and_between_phases_goes_on_exactly(tmp_path: Path, skip: bool) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "ignore_data_skip": skip}
    whole = inside(curriculum(DeltaLossSelector()), foreign.arguments(tmp_path / "whole", **settings))
    whole_seen = foreign.Seen(whole.model, foreign.rows())
    whole.train()
    for step in (1, 2, 4, 5, 7):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        shutil.copytree(tmp_path / "whole" / "selections", folder / "selections")
        killed = folder / "selections" / ".step-5.parquet.lf_ktee6.tmp"  # while it was written
        killed.touch()
        again = inside(curriculum(DeltaLossSelector()), foreign.arguments(folder, **settings))
        seen = foreign.Seen(again.model, foreign.rows())
        again.train(resume_from_checkpoint=True)
        assert seen.steps(2) == whole_seen.steps(2)[step:]
        assert foreign.losses(again) == foreign.losses(whole)
        assert foreign.chosen(folder) == foreign.chosen(tmp_path / "whole")
        assert not killed.exists()
        expected = foreign.weights(whole)
        assert all(torch.equal(value, expected[name]) for name, value in foreign.weights(again).items())


def test_a_finished_run_that_is_resumed_takes_no_step(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4}
    inside(curriculum(), foreign.arguments(tmp_path, **settings)).train()
    again = inside(curriculum(), foreign.arguments(tmp_path, **settings))
    seen = foreign.Seen(again.model, foreign.rows())
    again.train(resume_from_checkpoint=True)
    assert (again.state.global_step, seen.batches) == (8, [])


def test_checkpoints_of_other_runs_are_refused_by_name(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 4}
    inside(curriculum(), foreign.arguments(tmp_path / "run", **settings)).train()
    source = str(tmp_path / "run" / "checkpoint-4")
    other = inside(curriculum(schedule=Schedule(2, 2, 3)), foreign.arguments(tmp_path / "other"))
    with pytest.raises(TrainingError, match=r"checkpoint of step 4 belongs to another run: .*update_step 3 -> 2"):
        other.train(resume_from_checkpoint=source)
    state = tmp_path / "run" / "checkpoint-4" / "trainer_state.json"
    stored = json.loads(state.read_text())
    assert stored["stateful_callbacks"][STATE_KEY]["curriculum"]["round"] == 1
    del stored["stateful_callbacks"][STATE_KEY]
    state.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match="step 4 was saved by a trainer without a curriculum"):
        inside(curriculum(), foreign.arguments(tmp_path / "other")).train(resume_from_checkpoint=source)


def test_numbers_of_a_selection_stand_in_the_trainers_log_history(tmp_path: Path) -> None:
    trainer = inside(curriculum(less()), foreign.arguments(tmp_path))
    trainer.train()
    found = [entry for entry in trainer.state.log_history if "selection_round" in entry]
    assert [(entry["step"], entry["selection_round"], entry["selected"]) for entry in found] == [(2, 1, 12), (5, 2, 12)]
    assert all("selection_mean_score" in entry for entry in found)


def test_records_of_a_run_that_was_given_up_do_not_stay(tmp_path: Path) -> None:
    inside(curriculum(), foreign.arguments(tmp_path)).train()
    inside(curriculum(schedule=Schedule(3, 5, 1)), foreign.arguments(tmp_path)).train()
    assert list(foreign.chosen(tmp_path)) == [3]


def test_the_selector_works_in_the_trainers_precision(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Watching(RandomSelector):
        def select(self, context: SelectionContext) -> Selection:
            with torch.no_grad(), context.autocast():
                seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
            return super().select(context)

    inside(curriculum(Watching()), foreign.arguments(tmp_path / "bf16", bf16=True)).train()
    inside(curriculum(less()), foreign.arguments(tmp_path / "less", bf16=True)).train()
    AcceleratorState._reset_state(reset_partial_state=True)
    inside(curriculum(Watching()), foreign.arguments(tmp_path / "fp32")).train()
    assert seen == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_evaluations_and_a_phase_as_the_trainers_epoch(tmp_path: Path) -> None:
    held_out = Dataset.from_list(foreign.targets())
    args = foreign.arguments(tmp_path, eval_strategy="epoch")
    trainer = inside(curriculum(less()), args, eval_dataset=held_out)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [2, 5, 8]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy='group_by_length' orders rows by"),
        ({"dataloader_persistent_workers": True, "dataloader_num_workers": 1}, "keeps workers that do not learn of"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size=True changes the number of rows in a step"),
        ({"accelerator_config": {"dispatch_batches": None}}, "accelerator_config has to say that each process reads"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches=True: per_device_train_batch_size has to be"),
        ({"dataloader_in_order": False}, "dataloader_in_order=False lets batches overtake each other"),
    ],
)
def test_arguments_that_would_train_on_other_rows_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        inside(curriculum(), foreign.arguments(tmp_path, **settings))


def test_processes_that_share_a_row_are_refused(tmp_path: Path) -> None:
    args = foreign.arguments(tmp_path)
    args.parallelism_config = ParallelismConfig(cp_size=2)
    with pytest.raises(ConfigError, match=r"parallelism_config shares a row over processes \(tp, cp, sp\)"):
        curriculum().callback.on_init_end(args, None, None)


def test_rows_without_positions_and_a_missing_schedule_are_refused() -> None:
    stream = IterableDataset.from_generator(lambda: iter(foreign.rows()))
    with pytest.raises(DataError, match="training set: expected rows that are addressed by their position, got Iter"):
        Curriculum(stream)
    with pytest.raises(DataError, match="training set: there are no rows"):
        Curriculum([])
    with pytest.raises(TrainingError, match="a run with a selector needs a schedule"):
        Curriculum(foreign.rows(), selector="random")


def test_what_cannot_succeed_is_said_before_the_first_step(tmp_path: Path) -> None:
    args = foreign.arguments(tmp_path)
    too_long = inside(curriculum(schedule=Schedule(1, 7, 1)), args)
    with pytest.raises(TrainingError, match="a selection of update_step x global batch = 7 x 4 samples does not fit"):
        too_long.train()
    with pytest.raises(SelectionError, match="selector 'nice' reads the text of rows, and the evaluation set has tok"):
        inside(curriculum(tiny_nice()), args).train()
    found = curriculum()
    with pytest.raises(DataError, match="the trainer's train_dataset is not the curriculum's"):
        foreign.trainer(args, Dataset.from_list(foreign.rows()), [found.callback]).train()
    doubled = found.train_dataset.map(lambda rows: {name: 2 * column for name, column in rows.items()}, batched=True)
    with pytest.raises(DataError, match="the trainer makes more rows than the 24 that it is given"):
        foreign.trainer(args, doubled, [found.callback]).train()
    with pytest.raises(TrainingError, match="read by a trainer that does not have the curriculum's callback"):
        foreign.trainer(args, curriculum().train_dataset).train()
    static = Curriculum([{"input_ids": row["input_ids"]} for row in foreign.rows()])
    padding = transformers.DataCollatorWithPadding(tiny_tokenizer())
    trainer = foreign.trainer(args, static.train_dataset, [static.callback], data_collator=padding)
    with pytest.raises(DataError, match="collator makes input_ids, attention_mask, and no labels"):
        trainer.train()


def test_labels_are_those_of_the_trainers_collator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input_ids": row["input_ids"], "kind": "a"} for row in foreign.rows()]
    found = Curriculum(Dataset.from_list(rows), selector="random", schedule=Schedule(1, 1, 1))
    begun = []
    begin = found.begin
    monkeypatch.setattr(found, "begin", lambda *args: begun.append(begin(*args)) or begun[-1])
    collator = transformers.DataCollatorForLanguageModeling(tiny_tokenizer(), mlm=False, pad_to_multiple_of=16)
    args = foreign.arguments(tmp_path, max_steps=2)
    foreign.trainer(args, found.train_dataset, [found.callback], data_collator=collator).train()
    [run] = begun
    first = run.curriculum.train_dataset[0]
    assert first.input_ids == rows[0]["input_ids"]
    assert first.labels == [-100, *rows[0]["input_ids"][1:]]
    assert dict(first.sample.metadata) == {"kind": "a"}
