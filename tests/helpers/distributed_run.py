"""A tiny run under torchrun; a script for the processes that it starts."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch

from dataflex.selectors.delta_loss import DeltaLossSelector
from dataflex.selectors.less import LessSelector
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_lora, tiny_model
from dataflex.utils.launch import process_count
from helpers.runs import tiny_nice, tiny_trainer

SELECTORS = {
    "random": RandomSelector,
    "nice": tiny_nice,
    "less": partial(LessSelector, proj_dim=256, save_interval=5),
    "delta_loss": DeltaLossSelector,
}


def main(output_dir: str, selector: str, more: str = "{}") -> None:
    """Train with a global batch of 4, whatever the number of processes; ``more`` is JSON of further arguments."""
    torch.set_num_threads(1)
    settings = json.loads(more)
    size = settings.pop("per_device_train_batch_size", 1)
    tiny_trainer(
        Path(output_dir),
        model=tiny_lora(tiny_model(**settings.pop("model", {}))),
        selector=SELECTORS[selector](),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=4 // size // process_count(),
        eval_strategy="steps",
        eval_steps=4,
        save_steps=4,
        resume_from_checkpoint=True,
        **settings,
    ).train()


if __name__ == "__main__":
    main(*sys.argv[1:])
