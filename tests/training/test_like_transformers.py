"""Plain training beside transformers.Trainer: same model, same samples in the same order, same loss curve."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from dataflex.curriculum.schedule import Schedule, random_order
from dataflex.data.collate import collate
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training.arguments import TrainingArguments
from dataflex.training.trainer import Trainer

STEPS, WARMUP, SIZE, ACCUMULATION = 30, 3, 2, 3
SHARED = {
    "learning_rate": 5e-3,
    "weight_decay": 0.01,
    "lr_scheduler_type": "cosine",
    "max_grad_norm": 0.5,
}


class InOrder(transformers.Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def curve_of_transformers(folder, examples):
    arguments = transformers.TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        per_device_train_batch_size=SIZE,
        gradient_accumulation_steps=ACCUMULATION,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        warmup_steps=WARMUP,
        **SHARED,
    )

    def to_batch(chosen):
        batch = collate(chosen, 2)
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}

    trainer = InOrder(tiny_lora(tiny_model()).train(), args=arguments, train_dataset=examples, data_collator=to_batch)
    trainer.train()
    return [(entry["loss"], entry["learning_rate"], entry["grad_norm"]) for entry in trainer.state.log_history[:STEPS]]


def test_static_training_has_the_loss_curve_of_transformers(tmp_path):
    dataset = tiny_dataset(40, seed=0)
    trainer = Trainer(
        tiny_lora(tiny_model()),
        tiny_tokenizer(),
        dataset,
        schedule=Schedule(warmup_step=STEPS),
        args=TrainingArguments(
            output_dir=tmp_path / "ours",
            template="chatml",
            per_device_train_batch_size=SIZE,
            gradient_accumulation_steps=ACCUMULATION,
            logging_steps=1,
            plot_loss=False,
            seed=5,
            warmup_ratio=WARMUP / STEPS,
            **SHARED,
        ),
    )
    trainer.train()
    entries = [json.loads(line) for line in (tmp_path / "ours" / "trainer_log.jsonl").read_text().splitlines()]
    ours = [(entry["loss"], entry["learning_rate"], entry["grad_norm"]) for entry in entries]
    order = random_order(len(dataset), 0, STEPS * SIZE * ACCUMULATION, seed=5)
    expected = curve_of_transformers(tmp_path / "theirs", [dataset[int(index)] for index in order])
    assert len(ours) == len(expected) == STEPS
    assert ours[-1][0] < 0.8 * ours[0][0]
    for found, wanted in zip(ours, expected, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
