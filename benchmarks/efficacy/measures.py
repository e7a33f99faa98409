"""What a selection is worth, from the scores and the choice alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .pools import RIGHT, WRONG, Pool


def auc(scores: Sequence[float], positive: Sequence[int], negative: Sequence[int]) -> float:
    """Probability that a row of ``positive`` has a larger score than one of ``negative``; equal ones count half."""
    values = np.asarray(scores, dtype=np.float64)
    first, second = values[list(positive)], values[list(negative)]
    larger = (first[:, None] > second[None]).mean() + 0.5 * (first[:, None] == second[None]).mean()
    return float(larger)


def of_choice(pool: Pool, chosen: Sequence[int], scores: Sequence[float] | None) -> dict[str, Any]:
    """Shares of right and wrong target rows among the chosen, and how well the scores tell rows apart.

    ``auc``: right target rows against all other rows, those with wrong answers among them; ``auc_families``: against
    the rows of other families and noise; ``auc_wrong``: against target questions with wrong answers.
    """
    tasks = [pool.rows[place]["task"] for place in chosen]
    found: dict[str, Any] = {"chosen": len(tasks)}
    found |= {f"share_{name}": tasks.count(task) / len(tasks) for name, task in (("right", RIGHT), ("wrong", WRONG))}
    if scores is not None:
        right, wrong = pool.places(RIGHT), pool.places(WRONG)
        rest = [place for place in range(len(pool.rows)) if place not in {*right, *wrong}]
        found |= {
            "auc": auc(scores, right, [*wrong, *rest]),
            "auc_families": auc(scores, right, rest),
            "auc_wrong": auc(scores, right, wrong),
        }
    return found
