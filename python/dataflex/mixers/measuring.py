"""Losses of rows that stand for their domains, measured with forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dataflex.data.collate import collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.mixers.base import MixtureContext
from dataflex.models.losses import label_token_log_probs
from dataflex.models.model import undisturbed
from dataflex.utils.progress import progress_bar

BATCH_TOKENS = 2048
"""Padded tokens of one forward pass, at most; a longer row is a batch of its own."""

Reference = Callable[[], AbstractContextManager[nn.Module]]
"""Opens a context in which the reference model can be called."""


def drawn_rows(context: MixtureContext, count: int) -> list[NDArray[np.int64]]:
    """Per domain, the rows of ``measured_dataset`` to measure it by: at most ``count``, drawn by (seed, round)."""
    drawn = []
    for number, domain in enumerate(context.measured_domains):
        stream = np.random.default_rng([context.seed, 4, context.round, number])
        size = min(count, len(domain.rows))
        drawn.append(np.sort(stream.choice(domain.rows, size=size, replace=False)))
    return drawn


def excess_losses(
    context: MixtureContext, reference: Reference, rows: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Per domain, the mean over its label tokens of max(loss - loss of the reference, 0).

    Ranks share the rows; the values are added in the order of the rows, whoever computed them.

    Args:
        context: Model in training, dataset, precision, ranks.
        reference: The model to compare with, on the same device.
        rows: Per domain, positions in ``context.measured_dataset``.

    Returns:
        ``(K,)`` float64 nats, NaN for a domain without rows.
    """
    places = [int(row) for own in rows for row in own]
    shared = context.ranks.share(_batches(context.measured_dataset, places))
    quiet, total = not context.ranks.is_main, sum(len(numbers) for numbers in shared)

    def share() -> dict[int, tuple[float, int]]:
        found: dict[int, tuple[float, int]] = {}
        with undisturbed(context.model), progress_bar(total, "losses of domains", unit="row", disable=quiet) as bar:
            for numbers in shared:
                excess, learnt = _excess(context, reference, [places[number] for number in numbers])
                for number, value, tokens in zip(numbers, excess.tolist(), learnt.tolist(), strict=True):
                    found[number] = (value, tokens)
                bar.update(len(numbers))
        return found

    found = context.ranks.together(share)
    gathered = context.ranks.gather(sorted((number, *values) for number, values in found.items()))
    values = {number: (value, tokens) for own in gathered for number, value, tokens in own}
    means, first = np.full(len(rows), np.nan), 0
    for domain, own in enumerate(rows):
        part = [values[number] for number in range(first, first + len(own))]
        first += len(own)
        if part:
            means[domain] = sum(value for value, _ in part) / sum(tokens for _, tokens in part)
    return means


def _excess(context: MixtureContext, reference: Reference, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Summed excess ``(b,)`` float64 and label tokens ``(b,)`` int64 of some rows."""
    examples = [context.measured_dataset[row] for row in rows]
    device = next(context.model.parameters()).device
    batch = collate(examples, int(context.tokenizer.pad_token_id)).to(device)
    with torch.no_grad(), context.autocast():
        own, learnt = label_token_log_probs(context.model, batch)
        with reference() as other:
            expected, _ = label_token_log_probs(other, batch)
    excess = (expected.double() - own.double()).clamp(min=0).masked_fill(~learnt, 0)
    return excess.sum(dim=1), learnt.sum(dim=1)


def _batches(dataset: TokenizedDataset, rows: Sequence[int]) -> list[list[int]]:
    """Numbers of rows that are computed together: neighbours in length."""
    found: list[list[int]] = []
    for number in sorted(range(len(rows)), key=lambda number: len(dataset[rows[number]].input_ids)):
        # They come in order of length, so this one sets the width of the batch that it joins.
        if found and (len(found[-1]) + 1) * len(dataset[rows[number]].input_ids) <= BATCH_TOKENS:
            found[-1].append(number)
        else:
            found.append([number])
    return found
