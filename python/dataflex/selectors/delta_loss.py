"""Selection by progress: a window that slides from the candidates learnt fastest to those learnt slowest.

With l0 the losses at the first selection and l those now, candidates are ranked by d = l0 - l, largest first. In
selection u of T a window of ``window_size`` of the n ranks starts at

    sigmoid(10 (x - 1/2)) (1 - window_size) n,     x = (u - 1) / (T - 1), 0 if T = 1.

Candidates in the window weigh 1, the others 0.025, and those whose loss has risen (d < 0) weigh 0: they are drawn only
where nothing else is left. At the first selection every d is 0; ties are ranked at random, so that it is an even draw.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataflex.errors import SelectionError
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.draw import DrawConfig, DrawSelector, Weights

OUTSIDE = 0.025
"""Weight of a candidate outside the window."""


class DeltaLossConfig(DrawConfig):
    """Parameters of ``delta_loss``."""

    window_size: float = Field(0.2, gt=0, le=1, description="share of the ranks in the window")


class DeltaLossSelector(DrawSelector[DeltaLossConfig]):
    """Draws candidates by how far their loss has fallen since the first selection.

    A candidate's score is d, in nats a token. The losses of the first selection are part of the selector's state, so
    that a resumed run compares with the same ones.

    Source: the selector of this name in OpenDCAI's DataFlex.

    Example:
        >>> selector = DeltaLossSelector(window_size=0.2)
    """

    name: ClassVar[str] = "delta_loss"
    Config = DeltaLossConfig
    needs_same_candidates: ClassVar[bool] = True

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._first: NDArray[np.float64] | None = None

    def weigh(
        self, context: SelectionContext, losses: NDArray[np.float64], stream: np.random.Generator
    ) -> tuple[NDArray[np.bool_], Weights]:
        """Weights by rank of the progress.

        Raises:
            SelectionError: The first selection had another number of candidates.
        """
        if self._first is None:
            self._first = losses
        if len(self._first) != len(losses):
            raise SelectionError(
                f"delta_loss remembers {len(self._first)} losses of its first selection, there are {len(losses)} "
                "candidates now",
                hint="use a new selector for other data",
            )
        progress = self._first - losses
        usable = np.isfinite(progress)
        rows = np.flatnonzero(usable)
        ranked = rows[np.lexsort((stream.permutation(len(rows)), -progress[rows]))]
        start, stop = window(len(rows), self.config.window_size, context.round, context.num_rounds)
        weights = np.full(len(losses), OUTSIDE)
        weights[ranked[start:stop]] = 1.0
        weights[usable & (progress < 0)] = 0.0
        risen = int(np.sum(progress[rows] < 0))
        said = "how far the row's loss has fallen since the first selection, in nats a token"
        report = {"score": said, "window": [start, stop], "risen": risen, "first_selection": self._first is losses}
        return usable, Weights(weights, progress, report)

    def state_dict(self) -> dict[str, Any]:
        """The losses of the first selection, null where one is not finite."""
        if self._first is None:
            return {}
        return {"first_losses": [value if math.isfinite(value) else None for value in self._first.tolist()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        stored = state.get("first_losses")
        self._first = None if stored is None else np.array([math.nan if v is None else v for v in stored])


def window(count: int, size: float, round_number: int, num_rounds: int) -> tuple[int, int]:
    """First rank of the window and the one after its last.

    Args:
        count: Number of ranks n.
        size: Share of them in the window.
        round_number: u, from 1.
        num_rounds: T.
    """
    x = (round_number - 1) / (num_rounds - 1) if num_rounds > 1 else 0.0
    start = int((1 - size) * count / (1 + math.exp(-10 * (x - 0.5))))
    return start, min(start + max(1, round(size * count)), count)
