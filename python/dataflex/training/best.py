"""The best evaluation so far, and how long ago it was."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BestSoFar:
    """The best value of a metric and how long ago it was reached.

    Attributes:
        value: Best value, None before the first one that is finite.
        step: Step of the best value.
        stale: Evaluations since the last one that counted as progress.
        anchor: Value that the next one has to beat by the smallest improvement.
    """

    value: float | None = None
    step: int | None = None
    stale: int = 0
    anchor: float | None = None

    def update(self, value: float, step: int, *, greater_is_better: bool, min_delta: float) -> BestSoFar:
        """The record after another evaluation; progress is an improvement on the anchor by more than ``min_delta``.

        A value that is not finite is never the best, nor progress.
        """
        sign = 1.0 if greater_is_better else -1.0
        is_finite = math.isfinite(value)
        better = is_finite and (self.value is None or sign * (value - self.value) > 0)
        progress = is_finite and (self.anchor is None or sign * (value - self.anchor) > min_delta)
        return BestSoFar(
            value=value if better else self.value,
            step=step if better else self.step,
            stale=0 if progress else self.stale + 1,
            anchor=value if progress else self.anchor,
        )
