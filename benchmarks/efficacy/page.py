"""The tables of ``docs/efficacy.md`` that the command writes, between two markers for each set."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from dataflex.utils.files import write_text

from . import defaults
from .cells import Cell
from .methods import METHODS
from .store import Result
from .tables import Column, by_method, interval, interval_text, known, range_of, reliability, rows, shown_budget

RANDOM = "then: random"
BETTER: dict[str, Callable[[float, float, float, float], bool]] = {
    "test_rewards": lambda low, _high, _random_low, random_high: low > random_high,
    "test_losses": lambda _low, high, random_low, _random_high: high < random_low,
}
"""Whether a method's interval lies on the better side of random rows' interval."""


def write_tables(page: Path, name: str, asked: Sequence[Cell], found: Mapping[Cell, Result]) -> None:
    """Put a set's tables between its markers, and with the ablations what follows for the defaults.

    Raises:
        ValueError: The page has no such markers.
    """
    parts = {name: tables(asked, found)} | ({"defaults": defaults.table(found)} if name == "ablations" else {})
    text = page.read_text(encoding="utf-8")
    for part, wanted in parts.items():
        if not (marked := _marked(part)).search(text):
            raise ValueError(f"{page} has no lines '<!-- efficacy: {part} -->' and '<!-- /efficacy: {part} -->'")
        text = marked.sub(partial(_put, wanted), text)
    write_text(page, text)


def between(page: Path, name: str) -> str:
    """What stands between the markers of that name."""
    match = _marked(name).search(page.read_text(encoding="utf-8"))
    return match[2] if match else ""


def _put(text: str, match: re.Match[str]) -> str:
    return f"{match[1]}{text}{match[3]}"


def _marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?s)(<!-- efficacy: {name} -->\n)(.*?)(<!-- /efficacy: {name} -->)")


def tables(asked: Sequence[Cell], found: Mapping[Cell, Result]) -> str:
    """How much was measured, then every table."""
    parts = [_measured(asked, found)]
    if not found:
        return f"\n{parts[0]}\n"
    tested = any("test_rewards" in result for result in found.values())
    for key, title in (("test_rewards", "Exact match on the test rows"), ("test_losses", "Test loss, nats a token")):
        if tested:
            parts.append(f"{title}:\n\n{outcome(asked, found, key)}")
    parts += [f"`{task}`, what is chosen:\n\n{chosen(task, asked, found)}" for task in _tasks(asked)]
    return "\n" + "\n".join(parts) + "\n"


def outcome(asked: Sequence[Cell], found: Mapping[Cell, Result], key: str) -> str:
    """A row a method, a column a task and budget; bold where the interval is better than random rows' and apart."""
    columns = [(task, budget) for task in _tasks(asked) for budget in sorted({cell.budget or 0.0 for cell in asked})]
    methods = list(dict.fromkeys(cell.method for cell in asked))
    seeds = len({cell.seed for cell in asked})

    def values(method: str, task: str, budget: float) -> list[list[float]]:
        wanted = (method, task, budget)
        own = [result for cell, result in found.items() if (cell.method, cell.task, cell.budget) == wanted]
        return known(own, key)

    body = []
    for method in methods:
        texts = []
        for column in columns:
            own, random = values(method, *column), values(RANDOM, *column)
            text = interval_text(own, seeds)
            texts.append(f"**{text}**" if own and random and _apart(own, random, key) else text)
        if any(texts):
            body.append([shown(method), *texts])
    return rows(["", *(f"`{task}`, {shown_budget(budget)}" for task, budget in columns)], body)


def chosen(task: str, asked: Sequence[Cell], found: Mapping[Cell, Result]) -> str:
    """What is chosen at the least and the middle budget, what the scores are worth, and what choosing costs."""
    budgets = sorted({cell.budget or 0.0 for cell in asked})
    least, middle = budgets[0], budgets[len(budgets) // 2]
    chosen_at = {
        budget: [found[cell] for cell in found if (cell.task, cell.budget) == (task, budget)]
        for budget in (least, middle)
    }
    own = [result for result in chosen_at[middle] if METHODS[result["method"]].chooses]
    shares = [
        _share(name, budget, chosen_at[budget]) for budget in chosen_at for name in ("right", "wrong", "duplicate")
    ]
    columns = (
        *shares,
        ("AUC", range_of(lambda result: result.get("auc"))),
        ("against wrong answers", range_of(lambda result: result.get("auc_wrong"))),
        ("reliability", range_of(reliability)),
        ("warned", _warned),
        ("processor seconds", _mean_of("choice_processor")),
        ("peak, MiB", _mean_of("choice_peak")),
    )
    return by_method(own, columns, shown)


def shown(method: str) -> str:
    """A method's name on the page."""
    return method.removeprefix("then: ").replace("oracle", "right rows")


def _measured(asked: Sequence[Cell], found: Mapping[Cell, Result]) -> str:
    dates = sorted(result["utc"][:10] for result in found.values())
    when = f", {dates[0]} to {dates[-1]}" if dates and dates[0] != dates[-1] else f", {dates[0]}" if dates else ""
    return f"{len(found)} of {len(asked)} cells measured{when}.\n"


def _tasks(asked: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.task for cell in asked))


def _apart(own: Sequence[Sequence[float]], random: Sequence[Sequence[float]], key: str) -> bool:
    return BETTER[key](*interval(own)[1:], *interval(random)[1:])


def _share(name: str, budget: float, results: Sequence[Result]) -> Column:
    """The share of one kind of rows among a method's choices at a budget."""

    def cell(own: Sequence[Result]) -> str:
        of_method = [result for result in results if result["method"] == own[0]["method"]]
        return range_of(lambda result: result.get(f"share_{name}"))(of_method)

    return f"{name} rows at {shown_budget(budget)}", cell


def _warned(results: Sequence[Result]) -> str:
    of = [result["warned"] for result in results if result.get("reliability") and "warned" in result]
    return f"{sum(of)} of {len(of)}" if of else ""


def _mean_of(key: str) -> Callable[[Sequence[Result]], str]:
    def cell(results: Sequence[Result]) -> str:
        values = [result[key] for result in results if key in result]
        return f"{np.mean(values):,.0f}" if values else ""

    return cell
