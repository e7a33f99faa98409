from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from peft import PeftModel

import dataflex
from dataflex.curriculum.schedule import Schedule, selected_samples
from dataflex.data.collate import collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.data.templates import ChatTemplate
from dataflex.errors import CheckpointError, DataError, GradientError, SelectionError, TrainingError
from dataflex.models.losses import summed_loss
from dataflex.selectors.base import Selection, Selector, SelectorConfig
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training import checkpoint
from dataflex.training.arguments import TrainingArguments
from dataflex.training.trainer import Trainer
from helpers.rows import alpaca_rows
from helpers.runs import tiny_arguments, tiny_nice, tiny_trainer


def losses(output_dir: Path) -> list[float]:
    lines = (output_dir / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def selected(output_dir: Path) -> dict[str, list[int]]:
    """Chosen positions in rank order, by selection file."""
    found = {}
    for file in sorted((output_dir / "selections").glob("*.parquet")):
        rows = [row for row in pq.read_table(file).to_pylist() if row["chosen"]]
        found[file.name] = [row["index"] for row in sorted(rows, key=lambda row: row["rank"])]
    return found


def test_a_run_leaves_what_it_promises(tmp_path):
    results = tiny_trainer(tmp_path, eval_strategy="steps", eval_steps=4, plot_loss=True, save_steps=3).train()
    assert results["steps"] == results["total_steps"] == 8
    assert results["selections"] == 2
    assert list(selected(tmp_path)) == ["step-2.parquet", "step-5.parquet"]
    assert all(len(rows) == 12 for rows in selected(tmp_path).values())
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "trainer_log.jsonl",
        "trainer_state.json",
        "all_results.json",
        "training_loss.png",
        "README.md",
        "config.yaml",
        "report.html",
        "features",
        "rollouts",
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-5",
        "checkpoint-6",
        "checkpoint-8",
    }
    assert sorted(path.name for path in (tmp_path / "rollouts").glob("*.jsonl")) == ["step-2.jsonl", "step-5.jsonl"]
    assert [path.name for path in (tmp_path / "features").iterdir()] == ["step-5"]
    assert not list(tmp_path.rglob("*.tmp"))
    assert np.isfinite(losses(tmp_path)).all()
    assert len(losses(tmp_path)) == 8


def test_the_saved_adapter_is_the_trained_one(tmp_path):
    trainer = tiny_trainer(tmp_path)
    trainer.train()
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path).eval()
    batch = collate(list(tiny_dataset(3, seed=9)), 2)
    trainer.model.eval()
    with torch.no_grad():
        expected, _ = summed_loss(trainer.model, batch)
        found, _ = summed_loss(loaded, batch)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)
    untrained, _ = summed_loss(tiny_lora(tiny_model()), batch)
    assert float(untrained.detach()) != pytest.approx(float(expected), rel=1e-3)


def test_accumulation_does_not_change_the_step(tmp_path):
    schedule = Schedule(warmup_step=3)
    runs = {
        (size, accumulation): tiny_trainer(
            tmp_path / f"{size}",
            selector=RandomSelector(),
            schedule=schedule,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        for size, accumulation in ((1, 4), (2, 2), (4, 1))
    }
    for trainer in runs.values():
        trainer.train()
    first = losses(tmp_path / "1")
    for size in (2, 4):
        np.testing.assert_allclose(losses(tmp_path / f"{size}"), first, rtol=1e-5)


def test_rows_are_tokenised_where_the_arguments_say(tmp_path, monkeypatch):
    def made():
        args = tiny_arguments(
            tmp_path / "out", template="chatml", cache_dir=tmp_path / "c", preprocessing_num_workers=2
        )
        return Trainer(tiny_lora(tiny_model()), tiny_tokenizer(), alpaca_rows(12), args=args).train_dataset

    first = made()
    assert len([*(tmp_path / "c" / "tokenized").glob("*/rows.json")]) == 1
    monkeypatch.setattr(ChatTemplate, "encode_batch", None)  # now nothing can be tokenised
    assert made().fingerprint == first.fingerprint


def test_same_seed_same_run_other_seed_other_run(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        tiny_trainer(tmp_path / name, seed=seed).train()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert selected(tmp_path / "a") == selected(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("scoring", "writes"),
    [
        ("projected", 3),
        ("exact", 4),
        *(pytest.param("projected", writes, marks=pytest.mark.exhaustive) for writes in (1, 9)),
        *(pytest.param("exact", writes, marks=pytest.mark.exhaustive) for writes in (1, 8)),
    ],
)
def test_a_killed_selection_is_finished_by_the_resumed_run(tmp_path, scoring, writes):
    def trainer(name, **settings):
        selector = tiny_nice(scoring=scoring, feature_batch_tokens=128)
        return tiny_trainer(tmp_path / name, selector=selector, **settings)

    trainer("whole").train()
    broken = tmp_path / "broken"
    root = Path(__file__).parents[1]
    child = subprocess.run(
        [sys.executable, str(root / "helpers" / "killed_run.py"), str(broken), str(writes), scoring],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])},
        capture_output=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    left = len(list((broken / "scores").rglob("scores-*.safetensors"))) if scoring == "exact" else None
    trainer("broken", resume_from_checkpoint=True).train()
    assert selected(broken) == selected(tmp_path / "whole")
    assert losses(broken) == losses(tmp_path / "whole")
    # 24 candidates in 6 shards of a batch each; the scores of earlier rounds go when those of the next have been used.
    assert left is None or left == {1: 0, 4: 3, 8: 7}[writes]


@pytest.mark.parametrize("step", [2, 4, 6])
def test_resuming_repeats_the_unbroken_run(tmp_path, step):
    tiny_trainer(tmp_path / "whole", save_steps=2).train()
    resumed = tiny_trainer(
        tmp_path / "resumed", save_steps=2, resume_from_checkpoint=tmp_path / "whole" / f"checkpoint-{step}"
    )
    resumed.train()
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    name = "adapter_model.safetensors"
    assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_torn_checkpoint_is_passed_over(tmp_path, caplog):
    tiny_trainer(tmp_path, save_steps=2).train()
    expected = losses(tmp_path)
    torn = tmp_path / "checkpoint-8" / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-10])
    assert checkpoint.last_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    assert "optimizer.safetensors was altered or is torn" in caplog.text
    tiny_trainer(tmp_path, save_steps=2, resume_from_checkpoint=True).train()
    assert losses(tmp_path) == expected
    assert checkpoint.damage(tmp_path / "checkpoint-8") is None


def test_a_finished_run_has_nothing_left_to_train(tmp_path, monkeypatch):
    settings = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    tiny_trainer(tmp_path, **settings).train()
    expected = losses(tmp_path)
    saved = (tmp_path / "adapter_model.safetensors").read_bytes()
    (tmp_path / "adapter_model.safetensors").unlink()
    again = tiny_trainer(tmp_path, resume_from_checkpoint=True, **settings)
    monkeypatch.setattr(again, "_run_phase", None)
    assert again.train()["steps"] == 8
    assert losses(tmp_path) == expected
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == saved


def test_evaluations_that_are_not_finite_cost_no_checkpoint(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, eval_strategy="steps", eval_steps=1, save_steps=3)
    values = iter([math.nan, math.inf, *[2.0] * 10])
    monkeypatch.setattr(trainer, "evaluate", lambda: {"eval_loss": next(values)})
    assert (trainer.train()["best_step"], trainer.state.best.value) == (3, 2.0)
    assert checkpoint.last_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    lines = (tmp_path / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [entry["eval_loss"] for entry in logged if "eval_loss" in entry][:3] == [None, None, 2.0]


def test_going_on_from_an_earlier_checkpoint_gives_up_later_ones_only_if_allowed(tmp_path):
    tiny_trainer(tmp_path, save_steps=2).train()
    expected = losses(tmp_path)
    stale = tmp_path / "checkpoint-8" / "adapter_model.safetensors"
    before = stale.stat().st_mtime_ns
    earlier = {"save_steps": 2, "resume_from_checkpoint": tmp_path / "checkpoint-4"}
    with pytest.raises(TrainingError, match=r"checkpoint-5, checkpoint-6, checkpoint-8 in .* came after checkpoint-4"):
        tiny_trainer(tmp_path, **earlier).train()
    torn = tmp_path / "checkpoint-4" / "optimizer.safetensors"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match="altered or is torn"):
        tiny_trainer(tmp_path, **earlier, overwrite_output_dir=True).train()
    torn.write_bytes(whole)
    assert stale.stat().st_mtime_ns == before
    tiny_trainer(tmp_path, **earlier, overwrite_output_dir=True, save_total_limit=2).train()
    assert losses(tmp_path) == expected
    assert stale.stat().st_mtime_ns != before
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-6", "checkpoint-8"]


def test_a_run_that_goes_on_elsewhere_brings_its_best_model_and_needs_a_free_folder(tmp_path):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    tiny_trainer(tmp_path / "whole", **settings, learning_rate=1e-5).train()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    source = {**settings, "learning_rate": 1e-5, "resume_from_checkpoint": tmp_path / "whole" / "checkpoint-4"}
    with pytest.raises(TrainingError, match="taken is not empty"):
        tiny_trainer(tmp_path / "taken", **source).train()
    tiny_trainer(tmp_path / "other", **source).train()
    name = "adapter_model.safetensors"
    assert (tmp_path / "other" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    (tmp_path / "whole" / "best_model").rename(tmp_path / "whole" / ".best_model.x.old")
    tiny_trainer(tmp_path / "again", **source).train()  # as a kill in the middle of a replacement leaves it
    shutil.rmtree(tmp_path / "whole" / "best_model")
    with pytest.raises(CheckpointError, match=r"whose best model \(step \d\) is not in"):
        tiny_trainer(tmp_path / "third", **source).train()


def test_a_best_model_of_steps_that_are_taken_again_is_not_the_best_so_far(tmp_path, caplog):
    settings = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
    trainer = tiny_trainer(tmp_path, **settings)
    values = iter([3.0, 2.0, 1.0, 4.0])
    evaluate = trainer.evaluate
    trainer.evaluate = lambda: evaluate() | {"eval_loss": next(values)}
    assert trainer.train()["best_step"] == 6
    earlier = tiny_trainer(
        tmp_path, **settings, resume_from_checkpoint=tmp_path / "checkpoint-4", overwrite_output_dir=True
    )
    values = iter([9.0, 9.5])
    earlier.evaluate = lambda: {"eval_loss": next(values)}
    assert earlier.train()["best_step"] == 6
    assert "the best model of step 4 is gone" in caplog.text
    assert checkpoint.noted_step(tmp_path / "best_model") == 6


def test_model_only_checkpoints_of_another_run_are_replaced(tmp_path):
    tiny_trainer(tmp_path, save_steps=2, save_only_model=True).train()
    tiny_trainer(tmp_path, save_steps=2, resume_from_checkpoint=True).train()
    assert checkpoint.last_checkpoint(tmp_path) == tmp_path / "checkpoint-8"


def test_resuming_refuses_another_run(tmp_path):
    tiny_trainer(tmp_path, save_steps=2).train()
    with pytest.raises(TrainingError, match="belongs to another run: seed 3 -> 4"):
        tiny_trainer(tmp_path, resume_from_checkpoint=True, seed=4).train()
    with pytest.raises(TrainingError, match=r"another run: learning_rate 0\.01 -> 0\.5, warmup_ratio 0\.0 -> 0\.1"):
        tiny_trainer(tmp_path, resume_from_checkpoint=True, learning_rate=0.5, warmup_ratio=0.1).train()
    with pytest.raises(CheckpointError, match="there is no folder"):
        tiny_trainer(tmp_path, resume_from_checkpoint=tmp_path / "nowhere").train()


def test_resuming_without_a_checkpoint_starts_at_zero(tmp_path, caplog):
    trainer = tiny_trainer(tmp_path, resume_from_checkpoint=True, schedule=Schedule(warmup_step=1))
    assert trainer.train()["steps"] == 1
    assert "no checkpoint to resume from" in caplog.text


def test_a_used_folder_is_refused_or_started_over(tmp_path):
    tiny_trainer(tmp_path, save_steps=2, save_total_limit=2).train()
    assert len(checkpoint.checkpoints(tmp_path)) == 2
    with pytest.raises(TrainingError, match="not empty"):
        tiny_trainer(tmp_path).train()
    tiny_trainer(tmp_path, overwrite_output_dir=True, selector=RandomSelector(), schedule=Schedule(1)).train()
    assert checkpoint.checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]
    assert selected(tmp_path) == {}


def test_model_only_checkpoints_cannot_be_resumed_from(tmp_path):
    tiny_trainer(tmp_path, save_steps=2, save_only_model=True).train()
    assert checkpoint.last_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match="save_only_model"):
        tiny_trainer(tmp_path / "b", resume_from_checkpoint=tmp_path / "checkpoint-2").train()


def test_the_best_model_is_loaded_at_the_end_and_training_stops_early(tmp_path):
    trainer = tiny_trainer(
        tmp_path,
        selector=RandomSelector(),
        schedule=Schedule(2, 2, 10),
        learning_rate=0.5,
        eval_strategy="steps",
        eval_steps=1,
        load_best_model_at_end=True,
        early_stopping_steps=3,
        early_stopping_min_delta=0.01,
    )
    results = trainer.train()
    assert results["steps"] < results["total_steps"]
    history = [entry for entry in trainer.log.history if "eval_loss" in entry]
    assert results["best_metric"] == min(entry["eval_loss"] for entry in history)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(results["best_metric"], rel=1e-6)
    assert history[-1]["eval_loss"] > results["best_metric"]


def test_problems_are_said_before_training_and_together(tmp_path):
    with pytest.raises(TrainingError) as caught:
        tiny_trainer(tmp_path, schedule=Schedule(1, 7, 1), metric_for_best_model="bleu", eval_strategy="steps")
    assert "7 x 4 samples does not fit into 24 candidates; the largest update_step that does is 6" in str(caught.value)
    assert "metric_for_best_model 'eval_bleu' is unknown" in str(caught.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TrainingError, match="report_to names trackers that are not installed: nonesuch"):
        tiny_trainer(tmp_path, report_to=["nonesuch"])


def test_rows_without_loss_are_named_before_anything_is_loaded_or_taken(tmp_path):
    dataset = tiny_dataset(6)
    labels = [5] + [-100] * (len(dataset[4].input_ids) - 1)  # nothing predicts the first token
    spoilt = TokenizedDataset([*dataset[:4], replace(dataset[4], labels=labels), *dataset[5:]])
    arguments = TrainingArguments(output_dir=tmp_path, template="chatml")
    for door in (
        lambda: Trainer(tiny_lora(tiny_model()), tiny_tokenizer(), spoilt, args=arguments),
        lambda: dataflex.select(
            tiny_lora(tiny_model()), tiny_tokenizer(), spoilt, dataset, num_samples=2, template="chatml", proj_dim=256
        ),
    ):
        with pytest.raises(DataError, match=f"1 of 6 samples have no token that carries loss: {dataset[4].sample.id}"):
            door()
    assert not list(tmp_path.iterdir())


def test_a_selection_larger_than_the_dataset_repeats_when_allowed(tmp_path):
    tiny_trainer(tmp_path, selector=RandomSelector(), schedule=Schedule(1, 7, 1), selection_repeats=True).train()
    assert [len(rows) for rows in selected(tmp_path).values()] == [24]


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.arange(5), r"indices are int64\(5,\), expected int64\(12,\)"),
        (np.zeros(12, dtype=np.int64), "indices repeat: 11 of 12"),
        (np.arange(20, 32), "there are 24 candidates"),
        (np.arange(12.0), "float64"),
    ],
)
def test_a_wrong_selection_is_refused(tmp_path, indices, message):
    class Wrong(Selector[SelectorConfig]):
        Config = SelectorConfig
        name = "wrong"

        def select(self, context):
            return Selection(indices, None, self.name, context.step, context.round)

    with pytest.raises(SelectionError, match=message):
        tiny_trainer(tmp_path, selector=Wrong()).train()


def test_a_selector_learns_before_training_what_all_selections_ask_for(tmp_path):
    class Asked(RandomSelector):
        def check(self, context):
            raise SelectionError(f"at most {context.num_samples}, {context.total_samples} in all")

    # Batches of 4: phases of 5, 5, then (second cycle, cut) 5 and 1 steps, the first three of 20 of the 24 samples.
    schedule = Schedule(warmup_step=1, update_step=5, update_times=2)
    trainer = tiny_trainer(tmp_path, selector=Asked(), schedule=schedule, num_train_epochs=18 / 11)
    with pytest.raises(SelectionError, match="at most 20, 64 in all"):
        trainer.train()
    assert selected_samples(Schedule(0, 5, 2).phases(), global_batch=5, num_candidates=24) == 48  # one repeats rows


def test_adam_selection_without_warm_up_says_what_to_do(tmp_path):
    with pytest.raises(GradientError, match=r"no moments yet.*\n.*longer warm-up"):
        tiny_trainer(tmp_path, schedule=Schedule(0, 3, 1)).train()
    tiny_trainer(tmp_path / "sgd", selector=tiny_nice(gradient_type="sgd"), schedule=Schedule(0, 3, 1)).train()
    assert list(selected(tmp_path / "sgd")) == ["step-0.parquet"]


def test_gradient_checkpointing_changes_no_loss(tmp_path):
    for name, recompute in (("plain", False), ("recomputed", True)):
        tiny_trainer(
            tmp_path / name, selector=RandomSelector(), schedule=Schedule(2), gradient_checkpointing=recompute
        ).train()
    np.testing.assert_allclose(losses(tmp_path / "recomputed"), losses(tmp_path / "plain"), rtol=1e-5)


def test_a_full_model_is_trained_and_resumed_too(tmp_path):
    def trainer(name, **changes):
        made = tiny_trainer(tmp_path / name, selector=RandomSelector(), schedule=Schedule(2, 2, 1), **changes)
        return Trainer(
            tiny_model(num_hidden_layers=1),
            made.tokenizer,
            made.train_dataset,
            made.eval_dataset,
            RandomSelector(),
            schedule=made.schedule,
            args=made.args,
        )

    trainer("whole", save_steps=3).train()
    trainer("resumed", resume_from_checkpoint=tmp_path / "whole" / "checkpoint-3").train()
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    saved = [tmp_path / name / "model.safetensors" for name in ("whole", "resumed")]
    assert saved[0].read_bytes() == saved[1].read_bytes()
