"""What selectors that draw by loss share: the loss of every candidate, and a weighted draw.

The loss of a candidate is the mean token cross-entropy of that sample alone, without dropout, in the model's current
state. A selector turns the losses into weights w, and samples are drawn one after the other with probabilities
proportional to the weights of those that are left. The draw is that of Efraimidis and Spirakis (2006) in logarithms:
the samples with the largest log w_i + G_i, G_i independent standard Gumbel variables.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataflex.errors import SelectionError
from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig
from dataflex.selectors.losses import CandidateLosses, report_broken
from dataflex.selectors.plan import Plan
from dataflex.utils.progress import Stopwatch


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
        unusable = report_broken(context, usable)
        indices = self.draw(weights.weights, usable, context.num_samples, stream)
        report = {
            "seconds": watch.seconds,
            "candidates": {"total": len(losses), "not_finite": unusable},
            "left_out": {"candidates with a loss that is not finite": unusable},
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
        return Plan([self._losses(context).plan()])

    def losses(self, context: SelectionContext) -> NDArray[np.float64]:
        """Loss of every candidate ``(n,)`` in nats a token, NaN where it is not finite; from disk where it is there."""
        return self._losses(context).values()

    def _losses(self, context: SelectionContext) -> CandidateLosses:
        folder = (self.config.cache_dir or context.output_dir) / "losses"
        return CandidateLosses(context, folder, self.config.loss_batch_tokens)


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
