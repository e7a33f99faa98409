"""Losses of a causal language model on label tokens, without logits for the positions that carry none.

A row's logits are those of a batch of one, also where a model's rotary frequencies depend on the length of a batch
(:mod:`dataflex.models.rope`): rows whose frequencies differ get a forward pass of their own.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from dataflex.data.collate import Batch
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.models.model import base_model
from dataflex.models.rope import at_length, by_length_class


def trailing_logits(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor, keep: int, *, horizon: int | None = None
) -> Tensor:
    """Logits of the last ``keep`` positions.

    Args:
        model: Causal language model.
        input_ids: ``(b, t)`` int64.
        attention_mask: ``(b, t)`` int64, tokens on the left and padding on the right.
        keep: Positions to return; where the model allows it the others never pass the output head, which would
            cost a ``(b, t, vocabulary)`` tensor.
        horizon: Length whose rotary frequencies all rows have; None: every row has those of its own.

    Returns:
        ``(b, keep, vocabulary)`` float32 (float64 for a float64 model).
    """
    if horizon is not None:
        with at_length(model, horizon):
            return _logits(model, input_ids, attention_mask, keep)
    return by_length_class(
        model, attention_mask, lambda rows: _logits(model, input_ids[rows], attention_mask[rows], keep)
    )


def _logits(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
    """One forward pass."""
    extra = {}
    if "logits_to_keep" in inspect.signature(base_model(model).forward).parameters:
        extra["logits_to_keep"] = keep
    logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra).logits
    return logits[:, -keep:].to(torch.promote_types(logits.dtype, torch.float32))


def token_log_probs(logits: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each target token under softmax(logits / temperature).

    Args:
        logits: ``(b, t, vocabulary)`` floating point.
        targets: ``(b, t)`` int64; positions with ``IGNORE_INDEX`` give 0.
        temperature: Temperature T of the sampling distribution, > 0.

    Returns:
        ``(b, t)``, the dtype of ``logits``.
    """
    if temperature != 1:  # a copy of the largest tensor of the pass
        logits = logits / temperature
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="none"
    )
    return -losses.view_as(targets)


def label_log_probs(
    model: nn.Module, batch: Batch, temperature: float = 1.0, *, horizon: int | None = None
) -> tuple[Tensor, Tensor]:
    """Summed log-probability of the label tokens of every sample of a batch.

    Args:
        model: Causal language model.
        batch: ``(b, t)`` tensors; some row has a label token after position 0.
        temperature: Temperature T of the sampling distribution, > 0.
        horizon: As for :func:`trailing_logits`.

    Returns:
        ``(b,)`` sums, float32 or wider, and ``(b,)`` int64 numbers of label tokens.
    """
    log_probs, learnt = label_token_log_probs(model, batch, temperature, horizon=horizon)
    return log_probs.sum(dim=1), learnt.sum(dim=1)


def label_token_log_probs(
    model: nn.Module, batch: Batch, temperature: float = 1.0, *, horizon: int | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probability of every label token of a batch.

    Args:
        model: Causal language model.
        batch: ``(b, t)`` tensors; some row has a label token after position 0.
        temperature: Temperature T of the sampling distribution, > 0.
        horizon: As for :func:`trailing_logits`.

    Returns:
        ``(b, s)``, float32 or wider, 0 where there is no label; and ``(b, s)`` bool, where there is one. The s columns
        are the last ones, from the first label token of any row on.
    """
    targets = batch.labels[:, 1:]
    first = int((targets != IGNORE_INDEX).any(dim=0).nonzero()[0])
    targets = targets[:, first:]
    keep = targets.shape[1] + 1
    logits = trailing_logits(model, batch.input_ids, batch.attention_mask, keep, horizon=horizon)[:, :-1]
    return token_log_probs(logits, targets, temperature), targets != IGNORE_INDEX


def mean_losses(model: nn.Module, batch: Batch) -> Tensor:
    """Mean token cross-entropy of every sample of a batch on its own.

    Args:
        model: Causal language model.
        batch: ``(b, t)`` tensors; every row has a label token after position 0.

    Returns:
        ``(b,)``, float32 or wider.
    """
    totals, counts = label_log_probs(model, batch)
    return -totals / counts


def summed_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Token cross-entropy summed over the label tokens of a batch.

    Args:
        model: Causal language model.
        batch: ``(b, t)`` tensors; a label at position j is predicted from the logits at j - 1, so one at position 0
            does not count.

    Returns:
        Scalar sum (float32 or wider) and the number of label tokens in it.
    """
    columns = (batch.labels[:, 1:] != IGNORE_INDEX).any(dim=0).nonzero().flatten() + 1
    if len(columns) == 0:
        return torch.zeros((), device=batch.labels.device), 0
    first = int(columns[0])
    logits = trailing_logits(model, batch.input_ids, batch.attention_mask, batch.labels.shape[1] - first + 1)
    targets = batch.labels[:, first:]
    return -token_log_probs(logits[:, :-1], targets).sum(), int((targets != IGNORE_INDEX).sum())
