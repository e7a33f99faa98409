"""What selectors that draw by loss share: the loss of every candidate, and a weighted draw.

The loss of a candidate is the mean token cross-entropy of that sample alone, without dropout, in the model's current
state. A selector turns the losses into weights w, and samples are drawn one after the other with probabilities
proportional to the weights of those that are left. The draw is that of Efraimidis and Spirakis (2006) in logarithms:
the samples with the largest log w_i + G_i, G_i independent standard Gumbel variables.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from dataflex.data.collate import collate
from dataflex.errors import SelectionError
from dataflex.gradients.filling import fill_store
from dataflex.gradients.layout import by_length
from dataflex.gradients.store import FeatureStore
from dataflex.models.fingerprint import state_fingerprint
from dataflex.models.losses import mean_losses
from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig
from dataflex.selectors.plan import Plan, PlannedPart
from dataflex.utils.progress import Stopwatch
from dataflex.utils.shown import listed

logger = logging.getLogger(__name__)


class DrawConfig(SelectorConfig):
    """Parameters of every selector that draws by loss."""

    cache_dir: Path | None = Field(None, description="folder of the losses; null: inside output_dir")
    loss_batch_tokens: int = Field(2048, ge=1, description="padded tokens of one forward pass over candidates")


DrawConfigT = TypeVar("DrawConfigT", bound=DrawConfig)


@dataclass(frozen=True, slots=True)
class Weights:
    """What one round draws with.

    Attributes:
        weights: ``(n,)`` float64, at least 0; those of 0 are drawn, evenly, once nothing else is left.
        scores: ``(n,)`` float64 for the selection.
        report: Facts for the report; ``score`` says what a score is.
    """

    weights: NDArray[np.float64]
    scores: NDArray[np.float64]
    report: Mapping[str, Any]


class DrawSelector(Selector[DrawConfigT]):
    """Draws ``num_samples`` candidates with weights that follow from their losses."""

    @abstractmethod
    def weigh(
        self, context: SelectionContext, losses: NDArray[np.float64], stream: np.random.Generator
    ) -> tuple[NDArray[np.bool_], Weights]:
        """Which candidates can be drawn at all, and with which weights.

        Args:
            context: The selection's context.
            losses: ``(n,)`` mean token cross-entropies, NaN where one is not finite.
            stream: The round's random numbers.

        Returns:
            ``(n,)`` which candidates can be drawn, and their weights.
        """

    def select(self, context: SelectionContext) -> Selection:
        """Compute the losses and draw.

        Raises:
            SelectionError: More samples are asked for than there are candidates with a finite loss.
        """
        watch = Stopwatch()
        with watch.phase("losses"):
            losses = self.losses(context)
        stream = np.random.default_rng([context.seed, context.round])
        usable, weights = self.weigh(context, losses, stream)
        unusable = [context.train_dataset[int(row)].sample.id for row in np.flatnonzero(~usable)]
        if unusable:
            logger.warning(
                "%d training samples have a loss that is not finite and are left out: %s",
                len(unusable),
                listed(unusable),
            )
        indices = self.draw(weights.weights, usable, context.num_samples, stream)
        report = {
            "seconds": watch.seconds,
            "candidates": {"total": len(losses), "not_finite": len(unusable)},
            "left_out": {"candidates with a loss that is not finite": len(unusable)},
            **weights.report,
        }
        scores = np.where(usable, weights.scores, -np.inf)
        return Selection(indices, scores, self.name, context.step, context.round, report)

    def draw(
        self, weights: NDArray[np.float64], usable: NDArray[np.bool_], count: int, stream: np.random.Generator
    ) -> NDArray[np.int64]:
        """The drawn candidates in their order.

        Args:
            weights: ``(n,)`` float64, at least 0.
            usable: ``(n,)``: which candidates can be drawn at all.
            count: Samples to draw.
            stream: The round's random numbers.

        Returns:
            ``(count,)`` int64 positions.

        Raises:
            SelectionError: Fewer candidates can be drawn.
        """
        rows = np.flatnonzero(usable)
        return rows[weighted_draw(weights[rows], count, stream)].astype(np.int64)

    def plan(self, context: SelectionContext) -> Plan:
        """Losses of all candidates."""
        lengths = context.train_dataset.lengths
        layout = by_length(np.array(lengths, np.int64), self.config.loss_batch_tokens)
        return Plan(
            [
                PlannedPart(
                    name="losses",
                    lengths=lengths,
                    prepare=partial(sample_losses, context, [0]),
                    batches=lambda: list(layout.rows_of()),
                    compute=partial(sample_losses, context),
                    open_store=lambda folder: FeatureStore(folder, {}, layout, 1),
                )
            ]
        )

    def losses(self, context: SelectionContext) -> NDArray[np.float64]:
        """Loss of every candidate ``(n,)`` in nats a token, NaN where it is not finite; from disk where it is there."""
        dataset = context.train_dataset
        facts = {
            "state": state_fingerprint(context.model, context.autocast),
            "data": dataset.fingerprint,
            "batch_tokens": self.config.loss_batch_tokens,
        }
        folder = (self.config.cache_dir or context.output_dir) / "losses" / f"step-{context.step}"
        layout = by_length(np.array(dataset.lengths, np.int64), self.config.loss_batch_tokens)
        store = context.ranks.main_first(lambda: FeatureStore(folder, facts, layout, 1))
        fill_store(store, context.model, partial(sample_losses, context), description="losses", ranks=context.ranks)
        values = store.load()[:, 0].double().numpy()
        return np.where(np.isfinite(values), values, np.nan)


def sample_losses(context: SelectionContext, rows: Sequence[int]) -> Tensor:
    """Mean token cross-entropy of each of some candidates alone, ``(b, 1)``."""
    examples = [context.train_dataset[row] for row in rows]
    device = next(context.model.parameters()).device
    with torch.no_grad(), context.autocast():
        return mean_losses(context.model, collate(examples, int(context.tokenizer.pad_token_id)).to(device))[:, None]


def weighted_draw(weights: NDArray[np.float64], count: int, stream: np.random.Generator) -> NDArray[np.int64]:
    """Draw without replacement, each time with probabilities proportional to the weights of what is left.

    Args:
        weights: ``(n,)``, finite and at least 0; entries of 0 come after all others, in random order.
        count: How many to draw.
        stream: Random numbers.

    Returns:
        ``(count,)`` int64 positions in the order of the draw.

    Raises:
        SelectionError: ``count`` is larger than n.
    """
    if count > len(weights):
        raise SelectionError(f"{count} samples are to be drawn and {len(weights)} candidates can be")
    positive = weights > 0
    keys = stream.gumbel(size=len(weights)) + np.log(np.where(positive, weights, 1.0))
    return np.lexsort((-keys, ~positive))[:count].astype(np.int64)
