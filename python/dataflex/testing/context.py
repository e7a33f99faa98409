"""A selection context around tiny parts, as the trainer would build it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from dataflex.data import ChatTemplate
from dataflex.selectors.base import SelectionContext
from dataflex.testing.tiny import tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer


def tiny_context(output_dir: Path, *, steps: int = 2, **changes: Any) -> SelectionContext:
    """A LoRA model after ``steps`` steps of AdamW, 12 candidates and 3 evaluation samples.

    Args:
        output_dir: Folder of the run.
        steps: Optimizer steps on random gradients, so that moments exist.
        **changes: Fields to replace.
    """
    tokenizer = tiny_tokenizer()
    model = tiny_lora(tiny_model())
    fields: dict[str, Any] = {
        "model": model,
        "tokenizer": tokenizer,
        "template": ChatTemplate.load("chatml", tokenizer),
        "train_dataset": tiny_dataset(12, seed=0),
        "eval_dataset": tiny_dataset(3, seed=100),
        "num_samples": 4,
        "step": steps,
        "round": 1,
        "num_rounds": 2,
        "seed": 0,
        "output_dir": output_dir,
        "optimizer": stepped_optimizer(model, steps),
        "autocast": nullcontext,
    }
    fields |= changes
    fields.setdefault("total_samples", fields["num_samples"] * fields["num_rounds"])
    return SelectionContext(**fields)


def stepped_optimizer(model: torch.nn.Module, steps: int, **settings: Any) -> torch.optim.AdamW:
    """AdamW over the trainable parameters after ``steps`` steps on seeded random gradients."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **({"lr": 1e-3} | settings))
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * 0.01
        optimizer.step()
        optimizer.zero_grad()
    return optimizer
