"""What a selection is worth, from the scores and the choice alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .pools import DUPLICATE, RIGHT, WRONG, Pool


def auc(scores: Sequence[float], positive: Sequence[int], negative: Sequence[int]) -> float:
    """Probability that a row of ``positive`` has a larger score than one of ``negative``; equal ones count half.

    Rows without a score (NaN), which a prefilter left out, are below all others: they are equal to one another, and to
    those that cannot be used (-inf).
    """
    values = np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    first, second = values[list(positive)], values[list(negative)]
    larger = (first[:, None] > second[None]).mean() + 0.5 * (first[:, None] == second[None]).mean()
    return float(larger)


def of_choice(pool: Pool, chosen: Sequence[int]) -> dict[str, Any]:
    """Shares of right and wrong target rows among the chosen, and of near-duplicates of right ones."""
    tasks = [pool.rows[place]["task"] for place in chosen]
    shares = (("right", RIGHT), ("wrong", WRONG), ("duplicate", DUPLICATE))
    return {"chosen": len(tasks), **{f"share_{name}": tasks.count(task) / len(tasks) for name, task in shares}}


def of_scores(pool: Pool, scores: Sequence[float] | None) -> dict[str, float]:
    """How well the scores tell rows apart; nothing without scores. Near-duplicates count on neither side.

    ``auc``: right target rows against all others, those with wrong answers among them; ``auc_families``: against the
    rows of other families and noise; ``auc_wrong``: against target questions with wrong answers.
    """
    if scores is None:
        return {}
    right, wrong = pool.places(RIGHT), pool.places(WRONG)
    rest = sorted({*range(len(pool.rows))} - {*right, *wrong, *pool.places(DUPLICATE)})
    return {
        "auc": auc(scores, right, [*wrong, *rest]),
        "auc_families": auc(scores, right, rest),
        "auc_wrong": auc(scores, right, wrong),
    }
