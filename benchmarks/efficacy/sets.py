"""Named sets of cells, most valuable first, and what it costs to measure them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from .cells import Cell
from .methods import METHODS
from .pools import Sizes
from .store import Result
from .tasks import TASKS

SEEDS = (1, 2, 3)
BUDGETS = (0.1, 0.05, 0.2)
"""Shares of a pool. The middle one, at which all methods are measured, comes first."""
SIZES = Sizes(family=37, duplicates=12)
"""380 rows: 60 are target questions, with a right or a wrong answer or as near-duplicates, and some of the noise."""
LEARNING_RATE = 3e-4
"""At 1e-3, the rate of the pools without budgets, random rows teach much of the target's form (docs/efficacy.md)."""
FIRST = ("zero-shot", "then: random", "then: oracle", "then: less", "then: nice", "then: rds", "then: near")
QUICK = ("zero-shot", "then: random", "then: oracle", "then: nice")
REST = (
    "then: all rows",
    "then: loss",
    "then: tsds",
    "then: tsds, gradients",
    "then: less, after in_context",
    "then: in_context, after less",
    "then: less, second_moment",
    "then: less, round robin",
    "then: nice, second_moment",
    "then: nice, no references",
)
TWO_CHANGES = "nice, no baseline, temperature 0.7"
ABLATIONS = (
    *("then: less", "then: less, second_moment", "then: less, round robin"),
    *("then: nice", "then: nice, second_moment", "then: nice, no references"),
    *("then: rds", "then: tsds", "then: tsds, gradients"),
    *(name for name, method in METHODS.items() if (method.trains is False and name != TWO_CHANGES) or method.updates),
)
"""The shipped methods and those that differ from them in one parameter."""


@dataclass(frozen=True)
class CellSet:
    """Cells that are measured and shown together.

    Attributes:
        cells: In the order in which they are measured.
        sizes: Of their pools.
        learning_rate: Peak of the cosine, in every warm-up and training.
        most: The largest budget, as far as choices go; None where cells have none.
        public: Rows of each family of public questions beside the generated ones.
    """

    cells: tuple[Cell, ...]
    sizes: Sizes = SIZES
    learning_rate: float = LEARNING_RATE
    most: float | None = max(BUDGETS)
    public: int = 0


def cells(
    methods: Iterable[str], seeds: Iterable[int], tasks: Iterable[str], budgets: Iterable[float | None]
) -> list[Cell]:
    """Budget by budget, seed by seed, task by task."""
    order = product(budgets, seeds, tasks, methods)
    return [Cell(method, seed, task, budget) for budget, seed, task, method in order]


SETS: dict[str, CellSet] = {
    "quick": CellSet(tuple(cells(QUICK, (1,), ("kinds",), (0.1,)))),
    "main": CellSet(tuple(cells(FIRST, SEEDS, TASKS, BUDGETS) + cells(REST, SEEDS[:1], TASKS, BUDGETS[:1]))),
    "public": CellSet(tuple(cells(FIRST, SEEDS, TASKS, (0.1, 0.05))), most=0.1, public=12),
    "ablations": CellSet(tuple(cells(ABLATIONS, SEEDS[:1], TASKS, BUDGETS[:1]))),
}


Parts = dict[tuple[object, ...], tuple[float, bool]]
"""Of a cost: which part, how much, and whether it has been paid."""


@dataclass(frozen=True)
class Cost:
    """Processor hours, from the cells that have been measured.

    Attributes:
        total: Of all cells of a set, from nothing.
        left: Of those that have not been measured.
        guessed: Methods whose choice was never measured; they are taken to cost as much as the dearest that was.
    """

    total: float
    left: float
    guessed: tuple[str, ...]


def predict(wanted: Iterable[Cell], found: Mapping[Cell, Result]) -> Cost | None:
    """What a set costs: a training for each cell, and for each method and pool a choice; None if nothing is known.

    Warm-ups count as trainings. Cells that are the same at every budget are counted once.
    """
    phases = ("train_processor", "test_processor")
    trained = [result for result in found.values() if "train_processor" in result]
    trainings = [sum(result.get(phase, 0.0) for phase in phases) for result in trained]
    choosing: dict[str, list[float]] = {}
    for cell, result in found.items():
        if "choice_processor" in result:
            choosing.setdefault(cell.method, []).append(result["choice_processor"])
    if not trainings:
        return None
    price, dearest = fmean(trainings), max((fmean(own) for own in choosing.values()), default=0.0)
    parts: Parts = {}
    guessed: set[str] = set()
    for cell in wanted:
        method, there, pool = METHODS[cell.method], cell in found, (cell.task, cell.seed)
        budget = cell.budget if method.chooses else None
        parts[("train", cell.method, budget, *pool)] = (price if method.trains and method.selector else 0.0, there)
        if method.chooses:
            if cell.method not in choosing:
                guessed.add(cell.method)
            _add(parts, ("choose", cell.method, *pool), fmean(choosing.get(cell.method, [dearest])), there)
            _add(parts, ("warm up", *pool), price, there)
    total, left = sum(cost for cost, _ in parts.values()), sum(cost for cost, there in parts.values() if not there)
    return Cost(total / 3600, left / 3600, tuple(sorted(guessed)))


def _add(parts: Parts, key: tuple[object, ...], cost: float, there: bool) -> None:
    """Note a part that cells share: it is there once one of them is."""
    parts[key] = (cost, there or parts.get(key, (cost, False))[1])
