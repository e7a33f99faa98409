"""A tiny run under torchrun; a script for the processes that it starts."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from dataflex.config.deepspeed import shards_parameters
from dataflex.models.sharding import is_sharded
from dataflex.models.trainable import train_all
from dataflex.selectors.delta_loss import DeltaLossSelector
from dataflex.selectors.less import LessSelector
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from dataflex.utils.launch import process_count
from helpers.runs import tiny_nice, tiny_trainer

SELECTORS = {
    "random": RandomSelector,
    "nice": tiny_nice,
    "less": partial(LessSelector, proj_dim=256, save_interval=5),
    "delta_loss": DeltaLossSelector,
}


def main(output_dir: str, selector: str, more: str = "{}") -> None:
    """Train with a global batch of 4, whatever the number of processes; ``more`` is JSON of further arguments.

    Of these are for the script: ``model`` (overrides of the model's configuration, or ``"qwen"``), ``full`` (all
    parameters are trained), ``global_batch``.
    """
    torch.set_num_threads(1)
    settings = json.loads(more)
    size = settings.pop("per_device_train_batch_size", 1)
    total = settings.pop("global_batch", 4)
    base = built(settings.pop("model", {}))
    trainer = tiny_trainer(
        Path(output_dir),
        model=train_all(base) if settings.pop("full", False) else tiny_lora(base),
        selector=SELECTORS[selector](),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=total // size // process_count(),
        eval_strategy="steps",
        eval_steps=4,
        save_steps=4,
        resume_from_checkpoint=True,
        **settings,
    )
    asked = settings.get("fsdp") or shards_parameters(settings.get("deepspeed")) or "ACCELERATE_USE_FSDP" in os.environ
    assert is_sharded(trainer.model) == bool(asked and process_count() > 1)
    trainer.train()


def built(model: dict[str, Any] | str) -> Any:
    """A tiny Llama with these overrides, or a Qwen3 whose embeddings are tied."""
    if isinstance(model, dict):
        return tiny_model(**model)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
    )
    found = Qwen3ForCausalLM(config).eval()
    for parameter in found.parameters():  # rows that differ in more than rounding
        nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else nn.init.ones_(parameter)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
