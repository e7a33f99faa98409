"""Contexts of selections, mixtures and weights around tiny parts, as the trainer would build them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataflex.data import ChatTemplate
from dataflex.mixers.base import DomainLosses, MixtureContext
from dataflex.mixers.domains import Domain, by_size
from dataflex.selectors.base import SelectionContext
from dataflex.testing.tiny import tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.weighters.base import GlobalBatch


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


def tiny_mixture_context(output_dir: Path, *, sizes: Sequence[int] = (6, 4, 2), **changes: Any) -> MixtureContext:
    """A LoRA model after a phase of training on domains of different rows.

    Args:
        output_dir: Folder of the run.
        sizes: Rows of each domain.
        **changes: Fields to replace.
    """
    dataset = tiny_dataset(sum(sizes), seed=0, distinct=True)
    ends = np.cumsum(sizes).tolist()
    domains = tuple(
        Domain(f"domain-{number}", np.arange(end - size, end))
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True))
    )
    tokens = np.array([3 * size for size in sizes], dtype=np.int64)
    fields: dict[str, Any] = {
        "model": tiny_lora(tiny_model()),
        "tokenizer": tiny_tokenizer(),
        "train_dataset": dataset,
        "measured_dataset": dataset,
        "domains": domains,
        "measured_domains": domains,
        "proportions": by_size(domains),
        "losses": DomainLosses(tokens * np.linspace(1.0, 3.0, len(sizes)), tokens),
        "step": 2,
        "round": 1,
        "num_rounds": 3,
        "seed": 0,
        "output_dir": output_dir,
        "autocast": nullcontext,
    }
    return MixtureContext(**(fields | changes))


def tiny_global_batch(**changes: Any) -> GlobalBatch:
    """The six different samples of a step, three evaluation samples, and a LoRA model.

    Args:
        **changes: Fields to replace.
    """
    fields: dict[str, Any] = {
        "examples": list(tiny_dataset(6, seed=0, distinct=True)),
        "step": 1,
        "total_steps": 10,
        "model": tiny_lora(tiny_model()),
        "tokenizer": tiny_tokenizer(),
        "eval_dataset": tiny_dataset(3, seed=100, distinct=True),
        "seed": 0,
        "micro_batch": 2,
        "autocast": nullcontext,
    }
    return GlobalBatch(**(fields | changes))


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
