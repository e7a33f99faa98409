"""A curriculum inside an unmodified TRL ``SFTTrainer``: every form of rows, losses on parts of them, NICE."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model

from dataflex.errors import ConfigError, DataError
from dataflex.integrations.transformers import Curriculum
from dataflex.selectors.delta_loss import DeltaLossSelector
from dataflex.selectors.less import LessSelector
from dataflex.selectors.nice import NiceSelector
from dataflex.testing import tiny_model, tiny_samples
from dataflex.training.trainer import Trainer
from dataflex.weighters.loss import LossWeighter
from helpers import foreign
from helpers.runs import tiny_arguments
from helpers.sft import conversational, data, lora, plain_prompt_completion, prompt_completion, text
from helpers.sft import trainer as trainer_of

pytest.importorskip("trl", reason="TRL is not installed (the dev extra brings it)")


def watched(trainer: Any, found: Curriculum, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The candidates as the selector sees them, and the rows of each forward pass; filled when training begins."""
    seen: dict[str, Any] = {}
    begin = found.begin

    def begun(*arguments: Any) -> Any:
        run = begin(*arguments)
        seen["candidates"], seen["targets"] = run.curriculum.train_dataset, run.curriculum.eval_dataset
        seen["rows"] = foreign.Seen(trainer.model, foreign.columns(run.curriculum.train_dataset))
        return run

    monkeypatch.setattr(found, "begin", begun)
    return seen


@pytest.mark.parametrize(
    ("form", "settings", "learnt"),
    [
        (conversational, {"assistant_only_loss": True}, "<|im_end|>"),
        (conversational, {}, None),
        (prompt_completion, {}, "<|im_end|>"),
        (plain_prompt_completion, {}, "</s>"),
        (prompt_completion, {"completion_only_loss": False}, None),
        (text, {}, None),
    ],
    ids=[
        "conversations, assistant only",
        "conversations",
        "prompt and completion",
        "plain prompt and completion",
        "prompt and completion, both learnt",
        "text",
    ],
)
def test_every_form_of_rows_is_selected_as_it_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Any, settings: dict[str, Any], learnt: str | None
) -> None:
    found = Curriculum(
        data(form), data(form, 4, 50, distinct=False), selector=LessSelector(proj_dim=256), schedule=foreign.SCHEDULE
    )
    trainer = trainer_of(found, tmp_path, **settings)
    seen = watched(trainer, found, monkeypatch)
    trainer.train()
    foreign.assert_followed(seen["rows"].steps(2), tmp_path, 24)
    for part in (seen["candidates"], seen["targets"]):
        for example in part:
            labelled = [token for token in example.labels if token != -100]
            words = trainer.processing_class.decode(labelled)
            if learnt is None:
                assert example.labels == [-100, *example.input_ids[1:]]
            else:
                assert 0 < len(labelled) < len(example.input_ids) - 4
                assert learnt in words
                assert "What" not in words
                assert "Write" not in words


def reward(prediction: str, reference: str | None, metadata: Mapping[str, Any]) -> float:
    return sum(letter in "aeiou" for letter in prediction) / (1 + len(prediction))


@pytest.mark.parametrize("workers", [0, 2])
def test_nice_with_a_python_function_takes_prompts_from_the_raw_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    nice = NiceSelector(reward=reward, proj_dim=256, mc_samples=3, max_new_tokens=6, generation_temperature=1.0)
    prompts = Dataset.from_list([{"messages": [dict(each.messages[0])]} for each in tiny_samples(4, 50)])
    found = Curriculum(data(conversational), prompts, selector=nice, schedule=foreign.SCHEDULE)
    trainer = trainer_of(found, tmp_path, assistant_only_loss=True, dataloader_num_workers=workers)
    seen = watched(trainer, found, monkeypatch)
    trainer.train()
    foreign.assert_followed(seen["rows"].steps(2), tmp_path, 24)
    assert [example.sample.prompt[-1]["content"] for example in seen["targets"]] == [
        each.messages[0]["content"] for each in tiny_samples(4, 50)
    ]


@pytest.mark.parametrize("name", ["less", "nice", "delta_loss"])
def test_every_round_selects_what_the_own_trainer_selects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def parts() -> dict[str, Any]:
        makers: dict[str, Any] = {
            "less": lambda: LessSelector(proj_dim=256),
            "nice": lambda: NiceSelector(reward=reward, proj_dim=256, mc_samples=3, max_new_tokens=6),
            "delta_loss": DeltaLossSelector,
        }
        rows = data(conversational), data(conversational, 4, 50, distinct=False)
        return {
            "train_dataset": rows[0],
            "eval_dataset": rows[1],
            "selector": makers[name](),
            "schedule": foreign.SCHEDULE,
        }

    found = Curriculum(**parts())
    theirs = trainer_of(found, tmp_path / "theirs", assistant_only_loss=True)
    model = get_peft_model(tiny_model(), lora())
    model.load_state_dict(theirs.model.state_dict())
    ours = Trainer(
        model,
        theirs.processing_class,
        args=tiny_arguments(tmp_path / "ours", template=None, cutoff_len=64, lr_scheduler_type="linear"),
        **parts(),
    )
    seen = watched(theirs, found, monkeypatch)
    theirs.train()
    mine = foreign.Seen(ours.model, foreign.columns(ours.train_dataset))
    ours.train()
    assert foreign.chosen(tmp_path / "theirs") == foreign.chosen(tmp_path / "ours")
    assert seen["rows"].steps(2) == mine.steps(2)
    assert foreign.losses(theirs) == pytest.approx(foreign.own_losses(tmp_path / "ours"), rel=1e-4)


def test_rows_that_the_trainer_would_leave_out_are_named(tmp_path: Path) -> None:
    rows = data(prompt_completion).to_list()
    rows[5]["prompt"][0]["content"] = "What is the capital? " * 40
    found = Curriculum(Dataset.from_list(rows), selector="random", schedule=foreign.SCHEDULE)
    with pytest.raises(DataError, match=r"training set: the trainer leaves out 1 of 24 rows.*: rows 5\n"):
        trainer_of(found, tmp_path).train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"packing": True}, "packing=True trains on sequences of several rows; rows are selected one by one"),
        ({"shuffle_dataset": True}, "shuffle_dataset=True shuffles through a buffer, across steps"),
    ],
)
def test_settings_that_would_train_on_other_rows_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    found = Curriculum(data(text), selector="random", schedule=foreign.SCHEDULE)
    with pytest.raises(ConfigError, match=message):
        trainer_of(found, tmp_path, **settings)


def test_a_checkpoint_of_sfttrainer_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(folder: Path, source: Path | None) -> tuple[Any, list[list[int]]]:
        found = Curriculum(
            data(conversational),
            data(conversational, 4, 50, distinct=False),
            selector=LessSelector(proj_dim=256),
            schedule=foreign.SCHEDULE,
        )
        trainer = trainer_of(found, folder, save_strategy="steps", save_steps=1)
        seen = watched(trainer, found, monkeypatch)
        trainer.train(resume_from_checkpoint=None if source is None else str(source))
        return trainer, seen["rows"].steps(2)

    whole, steps = trained(tmp_path / "whole", None)
    for step in (2, 4):
        again, after = trained(tmp_path / f"from-{step}", tmp_path / "whole" / f"checkpoint-{step}")
        assert after == steps[step:]
        assert foreign.losses(again) == foreign.losses(whole)


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated:FutureWarning")
def test_equal_weights_are_sfttrainers_own_run_and_others_are_not(tmp_path: Path) -> None:
    def trained(name: str, **component: Any) -> Any:
        found = Curriculum(data(conversational), **component)
        handed = {"compute_loss_func": found.compute_loss_func} if component else {}
        settings = {"loss_type": "nll"} if component else {}  # TRL 1.14 has another default, which takes no function
        torch.manual_seed(0)  # TRL 1.14 makes the adapter before it seeds
        trainer = trainer_of(found, tmp_path / name, handed, assistant_only_loss=True, **settings)
        trainer.train()
        return trainer

    plain, equal = trained("plain"), trained("equal", weighter=LossWeighter(strategy="uniform"))
    assert foreign.losses(equal) == pytest.approx(foreign.losses(plain), rel=1e-5)
    expected = foreign.weights(plain)
    for name, value in foreign.weights(equal).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    other = trained("other", weighter=LossWeighter(strategy="extremes"))
    found = [entry["weighted_loss"] for entry in other.state.log_history if "weighted_loss" in entry]
    assert foreign.losses(other) == pytest.approx(found, rel=1e-3)
    assert foreign.losses(other)[1:] != pytest.approx(foreign.losses(plain)[1:], rel=1e-3)
