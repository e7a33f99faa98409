"""Selection by the size of the loss: candidates of low, medium or high loss are drawn more often.

The losses l_i are split in three bins at two quantiles (1/3 and 2/3 by default): low up to the first, medium up to the
second, high beyond. The bin in focus weighs w = focus_weight, the others 1, and samples are drawn with

    p_i proportional to (w_i + 1e-12)^(1 / temperature).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dataflex.errors import SelectionError
from dataflex.selectors.base import Selection, SelectionContext
from dataflex.selectors.draw import DrawConfig, DrawSelector, Weights

BINS = ("low", "medium", "high")


class LossConfig(DrawConfig):
    """Parameters of ``loss``."""

    focus: Literal["low", "medium", "high"] = Field("medium", description="bin of the losses that is drawn more often")
    focus_weight: float = Field(5.0, gt=0, allow_inf_nan=False, description="weight of that bin; the others have 1")
    quantiles: tuple[float, float] = Field((1 / 3, 2 / 3), description="shares of candidates below the bins' edges")
    temperature: float = Field(1.0, gt=0, description="above 1 evens the weights out, below 1 sharpens them")
    replacement: bool = Field(False, description="a candidate may be drawn more than once")

    @model_validator(mode="after")
    def _edges_in_order(self) -> LossConfig:
        low, high = self.quantiles
        if not 0 < low < high < 1:
            raise ValueError(f"quantiles must rise between 0 and 1, got {list(self.quantiles)}")
        return self


class LossSelector(DrawSelector[LossConfig]):
    """Draws candidates, those with a loss in the bin in focus more often than the others.

    A candidate's score is its loss: mean token cross-entropy in nats.

    Source: the selector of this name in OpenDCAI's DataFlex.

    Example:
        >>> selector = LossSelector(focus="high", focus_weight=5)
    """

    name: ClassVar[str] = "loss"
    Config = LossConfig

    def weigh(
        self, context: SelectionContext, losses: NDArray[np.float64], stream: np.random.Generator
    ) -> tuple[NDArray[np.bool_], Weights]:
        """Weights by bin."""
        del context, stream
        usable = np.isfinite(losses)
        edges = np.quantile(losses[usable], self.config.quantiles) if usable.any() else np.zeros(2)
        bins = np.searchsorted(edges, losses, side="left")  # (n,): 0 up to the first edge, 2 beyond the second
        weights = np.where(bins == BINS.index(self.config.focus), self.config.focus_weight, 1.0) + 1e-12
        weights = np.where(usable, weights, 0.0)
        # A common factor does not matter; 1 for the largest keeps a low temperature from making all of them 0.
        weights = (weights / weights.max(initial=1e-12)) ** (1 / self.config.temperature)
        counts = {name: int(np.sum(bins[usable] == place)) for place, name in enumerate(BINS)}
        said = "the row's loss, in nats a token, by which rows are drawn in classes, not in order"
        report = {"score": said, "edges": edges.tolist(), "bins": counts, "focus": self.config.focus}
        return usable, Weights(weights, losses, report)

    def draw(
        self, weights: NDArray[np.float64], usable: NDArray[np.bool_], count: int, stream: np.random.Generator
    ) -> NDArray[np.int64]:
        """Draw, with replacement where that is asked for.

        Raises:
            SelectionError: Fewer candidates can be drawn; with replacement: none can.
        """
        if not self.config.replacement:
            return super().draw(weights, usable, count, stream)
        rows = np.flatnonzero(usable)
        if not len(rows):
            raise SelectionError(f"{count} samples are to be drawn and no candidate has a finite loss")
        return stream.choice(rows, size=count, p=weights[rows] / weights[rows].sum()).astype(np.int64)

    def select(self, context: SelectionContext) -> Selection:
        """Compute the losses and draw; see :meth:`DrawSelector.select`."""
        return replace(super().select(context), repeats=self.config.replacement)
