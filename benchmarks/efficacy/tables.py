"""Results as lines and as tables: means over the seeds, with their range or an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from .store import Result

RESAMPLES, CONFIDENCE = 2000, 0.9
_HIDDEN = {"test_rewards", "test_losses", "indices", "rewards", "prompts", "utc", "revision", "seconds"}
Cells = Callable[[Sequence[Result]], str]
Column = tuple[str, Cells]


def report(result: Result) -> str:
    """One cell in a line."""
    kept = {key: value for key, value in result.items() if key not in _HIDDEN}
    kept |= {key: float(np.mean(result[key])) for key in ("test_rewards", "test_losses") if key in result}
    return " ".join(
        f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in kept.items()
    )


def interval(values: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Mean over test rows with its 90 % bootstrap interval: seeds are drawn again, and rows inside each.

    Args:
        values: Per seed, those of its test rows.
    """
    stream = np.random.default_rng(0)
    draws = []
    for _ in range(RESAMPLES):
        seeds = stream.integers(len(values), size=len(values))
        draws.append(np.mean([np.mean(stream.choice(values[seed], len(values[seed]))) for seed in seeds]))
    low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(np.mean([np.mean(own) for own in values])), float(low), float(high)


def known(results: Sequence[Result], key: str) -> list[list[float]]:
    """Per seed the values of its test rows, where they were measured."""
    return [result[key] for result in results if key in result]


def interval_text(values: Sequence[Sequence[float]], seeds: int = 0) -> str:
    """Mean and interval; where fewer than ``seeds`` seeds were measured, their number."""
    if not values:
        return ""
    mean, low, high = interval(values)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" + (f" ({len(values)} of {seeds})" if len(values) < seeds else "")


def range_of(pick: Callable[[Result], float | None]) -> Cells:
    """Mean, least and most of one value of a cell."""

    def cell(results: Sequence[Result]) -> str:
        values = [value for result in results if (value := pick(result)) is not None]
        if not values:
            return ""
        return f"{np.mean(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    return cell


def rows(header: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(header), " | ".join(["---"] * len(header)), *(" | ".join(line) for line in body)]
    return "".join(f"| {line} |\n" for line in lines)


def by_method(results: Sequence[Result], columns: Sequence[Column], name: Callable[[str], str] = str) -> str:
    """A row a method, in the order in which the methods came; nothing for no results."""
    methods = list(dict.fromkeys(result["method"] for result in results))
    grouped = {method: [result for result in results if result["method"] == method] for method in methods}
    body = [[name(method), *(cell(grouped[method]) for _, cell in columns)] for method in methods]
    return rows(["method", *(title for title, _ in columns)], body) if body else ""


def markdown(results: Sequence[Result]) -> str:
    """What is printed after a run: a table for each task and budget."""
    kinds = list(dict.fromkeys((result["task"], result["budget"]) for result in results))
    parts = []
    for task, budget in kinds:
        own = [result for result in results if (result["task"], result["budget"]) == (task, budget)]
        title = "" if len(kinds) == 1 else f"\n{task}, {shown_budget(budget)}\n\n"
        parts.append(title + by_method(own, COLUMNS))
    return "".join(parts)


def shown_budget(budget: float | None) -> str:
    """A budget in words."""
    return "the rows of the steps" if budget is None else f"{budget:.0%}".replace("%", " %")


def by_seed(results: Sequence[Result], key: str) -> str:
    """A table of one value, a row a method and a column a seed."""
    methods = list(dict.fromkeys(result["method"] for result in results))
    seeds = sorted({result["seed"] for result in results})
    found = {(result["method"], result["seed"]): result.get(key) for result in results}
    body = []
    for method in methods:
        values = [found.get((method, seed)) for seed in seeds]
        body.append([method, *("" if value is None else f"{value:.2f}" for value in values)])
    return rows([key, *(f"seed {seed}" for seed in seeds)], body)


def _seeds(results: Sequence[Result]) -> str:
    stopped = sum("stopped" in result for result in results)
    return f"{len(results)}" + (f", {stopped} stopped: no signal" if stopped else "")


def reliability(result: Result) -> float | None:
    """How far the target's direction can be trusted; None for methods without one."""
    of_targets: float | None = result.get("reliability", {}).get("targets")
    return of_targets


COLUMNS: tuple[Column, ...] = (
    ("seeds", _seeds),
    ("exact match", lambda results: interval_text(known(results, "test_rewards"))),
    ("test loss", lambda results: interval_text(known(results, "test_losses"))),
    ("right rows chosen", range_of(lambda result: result.get("share_right"))),
    ("wrong rows chosen", range_of(lambda result: result.get("share_wrong"))),
    ("near-duplicates chosen", range_of(lambda result: result.get("share_duplicate"))),
    ("AUC, right against all", range_of(lambda result: result.get("auc"))),
    ("against other families", range_of(lambda result: result.get("auc_families"))),
    ("against wrong answers", range_of(lambda result: result.get("auc_wrong"))),
    ("reliability", range_of(reliability)),
    ("answers rewarded", range_of(lambda result: result.get("share_rewarded"))),
)
