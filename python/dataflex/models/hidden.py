"""Sequences as vectors: the model's own last hidden states, pooled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dataflex.data.collate import Batch
from dataflex.errors import ModelError
from dataflex.models.model import base_model
from dataflex.models.rope import by_length_class


def pooled_states(model: nn.Module, batch: Batch) -> Tensor:
    """Position-weighted mean of the last hidden states: sum_t t h_t / sum_t t over a row's tokens t = 1 .. T.

    In a causal model later positions have seen more of the sequence, so they weigh more (Muennighoff, SGPT,
    arXiv 2202.08904; used for data selection by RDS+, arXiv 2503.01807).

    Args:
        model: Causal language model, wrapped or not, in eval mode.
        batch: ``(b, t)`` tensors; labels play no part.

    Returns:
        ``(b, h)`` float32 (float64 for a float64 model).

    Raises:
        ModelError: The model gives no hidden states.
    """
    return by_length_class(
        model, batch.attention_mask, lambda rows: _pooled(model, batch.input_ids[rows], batch.attention_mask[rows])
    )


def _pooled(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    base: Any = base_model(model)
    decoder = getattr(base, "base_model", base)  # without the output head
    output = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    states: Tensor | None = getattr(output, "last_hidden_state", None)
    if states is None:
        raise ModelError(f"{type(base).__name__} gives no last hidden states to compare rows by")
    wide = states.to(torch.promote_types(states.dtype, torch.float32))  # (b, t, h)
    weights = (attention_mask.cumsum(dim=1) * attention_mask).to(wide.dtype)  # (b, t)
    with torch.autocast(wide.device.type, enabled=False):  # it would make the product one of 16 bits
        pooled: Tensor = torch.einsum("bt,bth->bh", weights, wide)
    return pooled / weights.sum(dim=1, keepdim=True)
