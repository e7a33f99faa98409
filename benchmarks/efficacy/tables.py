"""Results as lines and as a table: means over the seeds, with their range or an interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Result = dict[str, Any]
RESAMPLES, CONFIDENCE = 2000, 0.9
_HIDDEN = {"test_rewards", "rewards", "prompts", "utc", "revision", "seconds"}
Column = tuple[str, Callable[[Sequence[Result]], str]]


def report(result: Result) -> str:
    """One cell in a line."""
    kept = {key: value for key, value in result.items() if key not in _HIDDEN}
    return " ".join(
        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in kept.items()
    )


def interval(rewards: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean of the test rewards with its 90 % bootstrap interval: seeds are drawn again, and rows inside each.

    Args:
        rewards: Per seed, those of its test rows.
    """
    stream = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        seeds = stream.integers(len(rewards), size=len(rewards))
        draws.append(np.mean([np.mean(stream.choice(rewards[seed], len(rewards[seed]))) for seed in seeds]))
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(np.mean([np.mean(own) for own in rewards])), float(low), float(high)


def markdown(results: Sequence[Result]) -> str:
    """The table, a row a method, in the order in which the methods came; nothing for no results."""
    methods = list(dict.fromkeys(result["method"] for result in results))
    lines = [" | ".join(["method", *(name for name, _ in COLUMNS)])]
    lines.append(" | ".join(["---"] * (len(COLUMNS) + 1)))
    for method in methods:
        own = [result for result in results if result["method"] == method]
        lines.append(" | ".join([method, *(cell(own) for _, cell in COLUMNS)]))
    return "".join(f"| {line} |\n" for line in lines) if methods else ""


def by_seed(results: Sequence[Result], key: str) -> str:
    """A table of one value, a row a method and a column a seed."""
    methods = list(dict.fromkeys(result["method"] for result in results))
    seeds = sorted({result["seed"] for result in results})
    found = {(result["method"], result["seed"]): result.get(key) for result in results}
    lines = [" | ".join([key, *(f"seed {seed}" for seed in seeds)]), " | ".join(["---"] * (len(seeds) + 1))]
    for method in methods:
        values = [found.get((method, seed)) for seed in seeds]
        lines.append(" | ".join([method, *("" if value is None else f"{value:.2f}" for value in values)]))
    return "".join(f"| {line} |\n" for line in lines)


def _exact_match(results: Sequence[Result]) -> str:
    rewards = [result["test_rewards"] for result in results if "test_rewards" in result]
    if not rewards:
        return ""
    mean, low, high = interval(rewards)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _range(pick: Callable[[Result], float | None]) -> Callable[[Sequence[Result]], str]:
    def cell(results: Sequence[Result]) -> str:
        values = [value for result in results if (value := pick(result)) is not None]
        if not values:
            return ""
        return f"{np.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    return cell


def _seeds(results: Sequence[Result]) -> str:
    stopped = sum("stopped" in result for result in results)
    return f"{len(results)}" + (f", {stopped} stopped: no signal" if stopped else "")


def _reliability(result: Result) -> float | None:
    known: float | None = result.get("reliability", {}).get("targets")
    return known


COLUMNS: tuple[Column, ...] = (
    ("seeds", _seeds),
    ("exact match", _exact_match),
    ("right rows chosen", _range(lambda result: result.get("share_right"))),
    ("wrong rows chosen", _range(lambda result: result.get("share_wrong"))),
    ("AUC, right against all", _range(lambda result: result.get("auc"))),
    ("against other families", _range(lambda result: result.get("auc_families"))),
    ("against wrong answers", _range(lambda result: result.get("auc_wrong"))),
    ("reliability", _range(_reliability)),
    ("answers rewarded", _range(lambda result: result.get("share_rewarded"))),
)
