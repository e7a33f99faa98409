"""The loss of every candidate alone, kept on disk: what selectors that go by losses share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataflex.data.collate import collate
from dataflex.data.dataset import Example
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.gradients.filling import fill_store
from dataflex.gradients.layout import Layout, by_length
from dataflex.gradients.store import FeatureStore
from dataflex.models.fingerprint import state_fingerprint
from dataflex.models.losses import mean_losses
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.plan import PlannedPart
from dataflex.utils.shown import listed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CandidateLosses:
    """Mean token cross-entropies of the candidates, each alone, without dropout, in the model's current state.

    Attributes:
        context: The selection's context.
        folder: Where the losses of each step lie.
        batch_tokens: Padded tokens of one forward pass.
        before: Token ids that stand before every candidate, without loss of their own.
    """

    context: SelectionContext
    folder: Path
    batch_tokens: int
    before: tuple[int, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each candidate with what stands before it."""
        return [len(self.before) + length for length in self.context.train_dataset.lengths]

    def plan(self) -> PlannedPart:
        """What is computed, for dry runs."""
        layout = self._layout()
        return PlannedPart(
            name="losses",
            lengths=self.lengths,
            prepare=partial(self._compute, [0]),
            batches=lambda: list(layout.rows_of()),
            compute=self._compute,
            open_store=lambda folder: FeatureStore(folder, {}, layout, 1),
        )

    def values(self) -> NDArray[np.float64]:
        """``(n,)`` in nats a token, NaN where one is not finite; from disk where they are there."""
        context = self.context
        facts = {
            "state": state_fingerprint(context.model, context.autocast),
            "data": context.train_dataset.fingerprint,
            "batch_tokens": self.batch_tokens,
        }
        if self.before:
            facts["before"] = list(self.before)
        folder, layout = self.folder / f"step-{context.step}", self._layout()
        store = context.ranks.main_first(lambda: FeatureStore(folder, facts, layout, 1))
        fill_store(store, context.model, self._compute, description="losses", ranks=context.ranks)
        found = store.load()[:, 0].double().numpy()
        return np.where(np.isfinite(found), found, np.nan)

    def _compute(self, rows: Sequence[int]) -> Tensor:
        return sample_losses(self.context, rows, self.before)

    def _layout(self) -> Layout:
        return by_length(np.array(self.lengths, np.int64), self.batch_tokens)


def report_broken(context: SelectionContext, usable: NDArray[np.bool_]) -> int:
    """Warn about candidates whose loss is not finite, by id.

    Args:
        context: The selection's context.
        usable: ``(n,)``: which candidates have a finite loss.

    Returns:
        How many have none.
    """
    broken = [context.train_dataset[int(row)].sample.id for row in np.flatnonzero(~usable)]
    if broken:
        logger.warning(
            "%d training samples have a loss that is not finite and are left out: %s", len(broken), listed(broken)
        )
    return len(broken)


def sample_losses(context: SelectionContext, rows: Sequence[int], before: Sequence[int] = ()) -> Tensor:
    """Mean token cross-entropy of each of some candidates alone, ``(b, 1)``.

    Args:
        context: The selection's context.
        rows: Positions of b candidates.
        before: Token ids that stand before each, without loss of their own.
    """
    examples = [_after(before, context.train_dataset[row]) for row in rows]
    device = next(context.model.parameters()).device
    with torch.no_grad(), context.autocast():
        return mean_losses(context.model, collate(examples, int(context.tokenizer.pad_token_id)).to(device))[:, None]


def _after(before: Sequence[int], example: Example) -> Example:
    if not before:
        return example
    # The first token of a row alone is never predicted: it counts no more where tokens stand before it.
    labels = [*[IGNORE_INDEX] * (len(before) + 1), *example.labels[1:]]
    return Example(example.sample, [*before, *example.input_ids], labels)
