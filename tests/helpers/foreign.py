"""Trainers of transformers and TRL around tiny parts, and the rows that a model is trained on, seen from inside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import transformers
from torch import nn
from transformers import DataCollatorForSeq2Seq

from dataflex.curriculum.schedule import Schedule, random_order
from dataflex.data.dataset import TokenizedDataset
from dataflex.integrations.transformers import Curriculum
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer

SCHEDULE = Schedule(warmup_step=2, update_step=3, update_times=2)
"""When a tiny run selects."""


def columns(dataset: TokenizedDataset) -> list[dict[str, Any]]:
    """A tokenised dataset as a trainer takes it."""
    return [
        {"input_ids": list(each.input_ids), "labels": list(each.labels), "attention_mask": [1] * len(each.input_ids)}
        for each in dataset
    ]


class Seen:
    """Rows of each forward pass of training, by position; rows must have different tokens."""

    def __init__(self, model: nn.Module, rows: Sequence[dict[str, Any]]) -> None:
        self._known = {tuple(row["input_ids"]): position for position, row in enumerate(rows)}
        assert len(self._known) == len(rows)
        self.batches: list[list[int]] = []
        model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not module.training:  # selectors and evaluations look without training
            return
        lengths = named["attention_mask"].sum(dim=1)
        rows = [tuple(ids[:length].tolist()) for ids, length in zip(named["input_ids"], lengths, strict=True)]
        self.batches.append([self._known[row] for row in rows])

    def steps(self, micro_batches: int) -> list[list[int]]:
        """Rows of each step."""
        parts = [self.batches[start : start + micro_batches] for start in range(0, len(self.batches), micro_batches)]
        return [joined(part) for part in parts]


def joined(parts: Sequence[list[int]]) -> list[int]:
    """The lists one after the other."""
    return [row for part in parts for row in part]


def settings(output_dir: Path) -> dict[str, Any]:
    """2 rows a device and 2 parts a step, everything logged, nothing saved."""
    return {
        "output_dir": str(output_dir),
        "max_steps": 8,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "seed": 3,
        "accelerator_config": {"dispatch_batches": False},
    }


def arguments(output_dir: Path, **changes: Any) -> transformers.TrainingArguments:
    """transformers' arguments out of :func:`settings`."""
    return transformers.TrainingArguments(**(settings(output_dir) | changes))


def collator() -> DataCollatorForSeq2Seq:
    """Pads rows and labels."""
    return DataCollatorForSeq2Seq(tiny_tokenizer(), padding=True)


def trainer(
    args: transformers.TrainingArguments, train_dataset: Any, callbacks: Sequence[Any] = (), **changes: Any
) -> transformers.Trainer:
    """An unmodified trainer of a tiny LoRA model."""
    parts: dict[str, Any] = {
        "model": tiny_lora(tiny_model()),
        "args": args,
        "train_dataset": train_dataset,
        "data_collator": collator(),
        "processing_class": tiny_tokenizer(chat_template=None),
        "callbacks": list(callbacks),
    }
    return transformers.Trainer(**(parts | changes))


def curriculum(selector: Any = None, **changes: Any) -> Curriculum:
    """24 candidates and 4 targets on the schedule of a tiny run; rows are selected at random unless it is said how."""
    parts: dict[str, Any] = {"selector": selector or RandomSelector(), "schedule": SCHEDULE}
    return Curriculum(rows(), targets(), **(parts | changes))


def inside(found: Curriculum, args: transformers.TrainingArguments, **changes: Any) -> transformers.Trainer:
    """The trainer of :func:`trainer` with a curriculum."""
    return trainer(args, found.train_dataset, [found.callback], **changes)


def targets() -> list[dict[str, Any]]:
    """4 tokenised target rows."""
    return columns(tiny_dataset(4, seed=50))


def rows(n: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Tokenised rows, no two alike."""
    return columns(tiny_dataset(n, seed=seed, distinct=True))


def losses(trained: transformers.Trainer) -> list[float]:
    """The loss of each step."""
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


def own_losses(output_dir: Path) -> list[float]:
    """The loss of each step of a run of this package's trainer."""
    entries = map(json.loads, (output_dir / "trainer_log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def weights(trained: transformers.Trainer) -> dict[str, torch.Tensor]:
    """The trained parameters."""
    return {name: value.detach().clone() for name, value in trained.model.named_parameters() if value.requires_grad}


def chosen(output_dir: Path) -> dict[int, list[int]]:
    """Positions that each selection chose, by the step before which it was made."""
    paths = (output_dir / "selections").glob("step-*.parquet")
    files = sorted(paths, key=lambda file: int(file.stem.removeprefix("step-")))
    tables = {int(file.stem.removeprefix("step-")): pq.read_table(file) for file in files}
    return {step: np.flatnonzero(table["chosen"].to_numpy()).tolist() for step, table in tables.items()}


def assert_followed(seen: list[list[int]], output_dir: Path, n: int, *, seed: int = 3) -> None:
    """Steps are 2 on random rows, then 2 selections of 3, each trained on whole, as the schedule of a tiny run says."""
    assert [len(step) for step in seen] == [len(seen[0])] * 8
    warm_up = random_order(n, 0, 2 * len(seen[0]), seed=seed).tolist()
    assert sorted(seen[0] + seen[1]) == sorted(warm_up)
    selections = chosen(output_dir)
    assert list(selections) == [2, 5]
    for start, rows_of_phase in selections.items():
        assert sorted(joined(seen[start : start + 3])) == rows_of_phase
    assert selections[2] != selections[5]
