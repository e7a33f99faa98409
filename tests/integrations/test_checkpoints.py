"""Checkpoints that other people's trainers wrote, read by a selection without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from peft import get_peft_model
from torch import nn

import dataflex
from dataflex.data.dataset import TokenizedDataset
from dataflex.integrations.transformers import Curriculum
from dataflex.selectors.less import LessSelector
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from helpers import foreign, sft


def whole_model() -> nn.Module:
    """All parameters are trained, so that both groups of the trainer's optimizer have members."""
    return tiny_model(num_hidden_layers=1, attention_bias=True)


def in_transformers(folder: Path, build: Any) -> tuple[Any, Any]:
    found = foreign.curriculum(LessSelector(proj_dim=256), save_before_selection=True)
    trainer = foreign.inside(found, foreign.arguments(folder, weight_decay=0.1, adam_beta2=0.99), model=build())
    trainer.train()
    return TokenizedDataset.from_columns(foreign.rows()), TokenizedDataset.from_columns(foreign.targets())


def in_trl(folder: Path, build: Any) -> tuple[Any, Any]:
    pytest.importorskip("trl", reason="TRL is not installed (the dev extra brings it)")
    rows, targets = sft.data(sft.conversational), sft.data(sft.conversational, 4, 50, distinct=False)
    found = Curriculum(
        rows, targets, selector=LessSelector(proj_dim=256), schedule=foreign.SCHEDULE, save_before_selection=True
    )
    changes = {"model": build(), "peft_config": None} if build is whole_model else {}
    trainer = sft.trainer(found, folder, changes, assistant_only_loss=True, weight_decay=0.1, adam_beta2=0.99)
    trainer.train()
    return rows, targets


@pytest.mark.parametrize(
    ("train", "build"),
    [
        (in_transformers, lambda: tiny_lora(tiny_model())),
        (in_transformers, whole_model),
        (in_trl, lambda: get_peft_model(tiny_model(), sft.lora())),
        (in_trl, whole_model),
    ],
    ids=["Trainer, adapter", "Trainer, whole model", "SFTTrainer, adapter", "SFTTrainer, whole model"],
)
def test_a_selection_at_a_checkpoint_is_the_one_that_the_run_made_there(tmp_path: Path, train: Any, build: Any) -> None:
    rows, targets = train(tmp_path, build)
    for step in (2, 5):
        chosen = dataflex.select(
            build(),
            tiny_tokenizer(chat_template=sft.CHAT_TEMPLATE),
            rows,
            targets,
            selector=LessSelector(proj_dim=256),
            num_samples=12,
            checkpoint=tmp_path / f"checkpoint-{step}",
            seed=3,
        )
        table = pq.read_table(tmp_path / "selections" / f"step-{step}.parquet")
        assert chosen.step == step
        assert np.array_equal(chosen.scores, table["score"].to_numpy())
        assert sorted(chosen.indices.tolist()) == np.flatnonzero(table["chosen"].to_numpy()).tolist()


def test_static_less_over_the_epochs_of_sfttrainer_weighs_them_by_their_learning_rates(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed (the dev extra brings it)")
    rows, targets = sft.data(sft.conversational), sft.data(sft.conversational, 4, 50, distinct=False)
    settings = sft.settings(tmp_path) | {"max_steps": -1, "num_train_epochs": 2, "save_strategy": "epoch"}
    tokenizer = tiny_tokenizer(chat_template=sft.CHAT_TEMPLATE)
    trl.SFTTrainer(
        tiny_model(), trl.SFTConfig(**settings), train_dataset=rows, processing_class=tokenizer, peft_config=sft.lora()
    ).train()
    chosen = dataflex.less_static(
        get_peft_model(tiny_model(), sft.lora()),
        tokenizer,
        rows,
        targets,
        [tmp_path / "checkpoint-6", tmp_path / "checkpoint-12"],
        num_samples=6,
        proj_dim=256,
    )
    shares = [part["weight"] for part in chosen.report["checkpoints"]]
    mean_rates = [np.mean([12 - step for step in steps]) for steps in (range(6), range(6, 12))]  # linear decay
    assert shares == pytest.approx([rate / sum(mean_rates) for rate in mean_rates])
