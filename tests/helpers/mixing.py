"""Small runs on domains: a tiny LoRA model, three domains of different sizes, a mixer or a weighter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dataflex.curriculum.schedule import Schedule
from dataflex.data.dataset import TokenizedDataset
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training.trainer import Trainer
from helpers.runs import tiny_arguments

SIZES = {"a": 12, "b": 8, "c": 4}


def domain_dataset(sizes: dict[str, int] | None = None, seed: int = 0) -> TokenizedDataset:
    """Different rows, of which the first come from the dataset a, the next from b, ..."""
    wanted = SIZES if sizes is None else sizes
    names = [name for name, size in wanted.items() for _ in range(size)]
    dataset = tiny_dataset(len(names), seed=seed, distinct=True)
    pairs = zip(dataset, names, strict=True)
    examples = [replace(example, sample=replace(example.sample, source=name)) for example, name in pairs]
    return TokenizedDataset(examples)


def domain_trainer(
    output_dir: Path,
    *,
    model: Any = None,
    sizes: dict[str, int] | None = None,
    schedule: Schedule | None = None,
    eval_dataset: Any = None,
    mixer: Any = None,
    weighter: Any = None,
    mixer_eval_dataset: Any = None,
    domains: Any = None,
    **args: Any,
) -> Trainer:
    """A trainer over 24 rows of three domains: 2 steps on the initial mixture, then 2 phases of 3 steps."""
    if schedule is None and mixer is not None:
        schedule = Schedule(2, 3, 2)
    return Trainer(
        tiny_lora(tiny_model()) if model is None else model,
        tiny_tokenizer(),
        domain_dataset(sizes),
        eval_dataset,
        mixer=mixer,
        weighter=weighter,
        mixer_eval_dataset=mixer_eval_dataset,
        domains=domains,
        schedule=schedule,
        args=tiny_arguments(output_dir, **args),
    )
