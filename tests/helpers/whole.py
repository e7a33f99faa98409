"""Whole gradients (b, p): streamed by the batched rules, and from a backward pass a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dataflex.data.collate import Batch, collate
from dataflex.gradients.hooks import BatchedGradients
from dataflex.gradients.plain import sample_gradient
from dataflex.models.losses import mean_losses
from dataflex.models.model import trainable_parameters, undisturbed


def streamed(model: nn.Module, rows: int, losses: Callable[[], Tensor], groups: Sequence[int] | None = None) -> Tensor:
    """``(g, p)`` float64 gradients; fails unless every parameter arrives exactly once."""
    count = sum(parameter.numel() for _, parameter in trainable_parameters(model))
    values = torch.full((rows if groups is None else len(groups), count), float("nan"), dtype=torch.float64)
    arrived = torch.zeros(count, dtype=torch.int64)

    def sink(block: Tensor, offset: int) -> None:
        values[:, offset : offset + block.shape[1]] = block
        arrived[offset : offset + block.shape[1]] += 1

    with undisturbed(model):
        BatchedGradients(model).run(rows, losses, sink, groups=groups)
    assert bool((arrived == 1).all())
    return values


def streamed_batch(model: nn.Module, batch: Batch) -> Tensor:
    """The gradients of each row's mean loss."""
    return streamed(model, len(batch.input_ids), lambda: mean_losses(model, batch))


def one_by_one(model: nn.Module, examples: Sequence[Any]) -> Tensor:
    """``(b, p)`` gradients from a backward pass of a batch of one each."""
    with undisturbed(model):
        return torch.stack([sample_gradient(model, collate([example], 2), nullcontext) for example in examples])


def relative_errors(found: Tensor, expected: Tensor) -> list[float]:
    """Relative error of each row, in float64."""
    return [
        float((row - wanted).norm() / wanted.norm())
        for row, wanted in zip(found.double(), expected.double(), strict=True)
    ]
