"""A tiny run with a mixer or a weighter under torchrun; a script for the processes that it starts."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dataflex.curriculum.schedule import Schedule
from dataflex.testing import tiny_dataset
from dataflex.utils.launch import process_count
from helpers.mixing import domain_trainer


def main(output_dir: str, kind: str, name: str) -> None:
    """Train with a global batch of 4, whatever the number of processes."""
    torch.set_num_threads(1)
    domain_trainer(
        Path(output_dir),
        schedule=Schedule(2, 1, 4) if kind == "mixer" else Schedule(1, 4, 1),
        eval_dataset=tiny_dataset(4, seed=50),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2 // process_count(),
        save_steps=3,
        resume_from_checkpoint=True,
        **{kind: name},
    ).train()


if __name__ == "__main__":
    main(*sys.argv[1:])
