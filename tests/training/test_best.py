from __future__ import annotations

import math

import pytest

from dataflex.training.best import BestSoFar


def after(*values: float, greater_is_better: bool = False, min_delta: float = 0.0) -> BestSoFar:
    """The record after evaluations at steps 1, 2, ..."""
    best = BestSoFar()
    for step, value in enumerate(values, start=1):
        best = best.update(value, step, greater_is_better=greater_is_better, min_delta=min_delta)
    return best


@pytest.mark.parametrize(
    ("values", "greater_is_better", "value", "step", "stale"),
    [
        ((3.0, 2.0, 2.0, 2.5), False, 2.0, 2, 2),
        ((3.0, 2.0, 4.0), True, 4.0, 3, 0),
        ((math.nan, 3.0, math.nan), False, 3.0, 2, 1),
        ((math.nan, math.inf), True, None, None, 2),
    ],
)
def test_the_best_value_and_the_evaluations_since(
    values: tuple[float, ...], greater_is_better: bool, value: float | None, step: int | None, stale: int
) -> None:
    best = after(*values, greater_is_better=greater_is_better)
    assert (best.value, best.step, best.stale) == (value, step, stale)


def test_small_improvements_add_up_to_progress() -> None:
    assert after(3.0, 2.9, 2.8, min_delta=0.15) == BestSoFar(value=2.8, step=3, stale=0, anchor=2.8)
    assert after(3.0, 2.9, min_delta=0.15) == BestSoFar(value=2.9, step=2, stale=1, anchor=3.0)
