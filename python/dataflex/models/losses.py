"""Losses of a causal language model on label tokens, without logits for the positions that carry none.

A row's logits are those of a batch of one, also where a model's rotary frequencies depend on the length of a batch
(:mod:`dataflex.models.rope`): rows whose frequencies differ get a forward pass of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dataflex.data.collate import Batch
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import ModelError
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

    def run(rows: list[int]) -> Tensor:
        return _forward(model, input_ids[rows], attention_mask[rows], keep)[:, -keep:]

    return _with_frequencies(model, attention_mask, horizon, run)


def _with_frequencies(
    model: nn.Module, attention_mask: Tensor, horizon: int | None, run: Callable[[list[int]], Tensor]
) -> Tensor:
    """What ``run`` gives for the numbers of all rows, each with the rotary frequencies that it has."""
    if horizon is None:
        return by_length_class(model, attention_mask, run)
    with at_length(model, horizon):
        return run(list(range(len(attention_mask))))


def _forward(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, keep: int) -> Tensor:
    """Logits of one pass: of the last ``keep`` positions where the model allows it, else of all."""
    keeps = "logits_to_keep" in inspect.signature(base_model(model).forward).parameters
    extra = {"logits_to_keep": keep} if keeps else {}
    logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **extra).logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _logits_at(model: nn.Module, input_ids: Tensor, attention_mask: Tensor, keep: int, places: Tensor) -> Tensor:
    """``(b, s, vocabulary)`` of positions ``(b, s)``, all among the last ``keep``; no other passes the output head."""
    base, places = base_model(model), places - input_ids.shape[1]
    with _at_head(base, places) as taken:
        logits = _forward(model, input_ids, attention_mask, keep)
    if not taken:
        return _values_at(logits, places)
    if logits.shape[:2] != places.shape:
        raise ModelError(
            f"the output head of {type(base).__name__} was given {tuple(places.shape)} positions, and the model "
            f"returned logits of shape {tuple(logits.shape)}: logits must come of one position each"
        )
    return logits


@contextmanager
def _at_head(base: Any, places: Tensor) -> Iterator[list[bool]]:
    """Let the output head see some positions alone, counted from the end; the list is empty if it is never called."""
    head: nn.Module | None = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    taken: list[bool] = []

    def take(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        del module
        taken.append(True)
        return (_values_at(inputs[0], places), *inputs[1:])

    if head is None:
        yield taken
        return
    handle = head.register_forward_pre_hook(take)
    try:
        yield taken
    finally:
        handle.remove()


def _values_at(values: Tensor, places: Tensor) -> Tensor:
    """``(b, s, n)`` of ``(b, t, n)`` at some positions, counted from the end."""
    rows = torch.arange(len(values), device=values.device)[:, None]
    return values[rows, (places + values.shape[1]).clamp(min=0)]


def label_logits(model: nn.Module, batch: Batch, *, horizon: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits of the label tokens alone; no other position passes the output head.

    Args:
        model: Causal language model.
        batch: ``(b, t)`` tensors; some row has a label token after position 0.
        horizon: As for :func:`trailing_logits`.

    Returns:
        ``(b, s, vocabulary)``, float32 or wider, of the label tokens of each row in their order, s the most that a row
        has, and ``(b, s)`` int64 these tokens, ``IGNORE_INDEX`` after the last.

    Raises:
        ModelError: The model's logits do not come of one position of its output head each.
    """
    targets = batch.labels[:, 1:]
    learnt = targets != IGNORE_INDEX
    places = learnt.byte().argsort(dim=1, descending=True, stable=True)[:, : int(learnt.sum(dim=1).max())]
    keep = batch.labels.shape[1] - int(learnt.any(dim=0).byte().argmax())

    def run(rows: list[int]) -> Tensor:
        return _logits_at(model, batch.input_ids[rows], batch.attention_mask[rows], keep, places[rows])

    return _with_frequencies(model, batch.attention_mask, horizon, run), targets.gather(1, places)


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
        ``(b, s)``, float32 or wider, of the label tokens of each row in their order, 0 after the last; and ``(b, s)``
        bool, which are label tokens. s is the most that a row has.
    """
    logits, targets = label_logits(model, batch, horizon=horizon)
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
    count = int((batch.labels[:, 1:] != IGNORE_INDEX).sum())
    if count == 0:
        return torch.zeros((), device=batch.labels.device), 0
    logits, targets = label_logits(model, batch)
    return -token_log_probs(logits, targets).sum(), count
