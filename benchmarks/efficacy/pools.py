"""Planted pools: target questions with right and with wrong answers among those of eight other families.

What can be asked about is drawn by seed. Target prompts, test rows and the rows of the pool are about different things:
no word that is asked about stands in two of them. Near-duplicates are in the pool alone, beside the rows they repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from .families import FAMILIES, Pair, gibberish
from .tasks import TASKS

RIGHT, WRONG, DUPLICATE, NOISE = "target", "wrong", "duplicate", "noise"
"""Tasks of the rows: target questions with right answers, with wrong ones, right ones in almost the same words again;
any questions with gibberish as answer."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Rows of each part.

    Attributes:
        right: Target questions with the right answer in the pool.
        wrong: Target questions with a wrong one.
        family: Rows of each of the eight other families.
        noise: Questions of all families, the target's among them, answered with gibberish.
        prompts: Target prompts, with references: what is selected for.
        test: Target questions that only the test sees.
        duplicates: Right rows that stand in the pool once more, the question in almost the same words.
    """

    right: int = 24
    wrong: int = 24
    family: int = 26
    noise: int = 24
    prompts: int = 12
    test: int = 48
    duplicates: int = 0


@dataclass(frozen=True)
class Pool:
    """What one seed draws: rows to choose from, what the choice is for, and what the trained model is tested on."""

    rows: list[Row]
    prompts: list[Row]
    test: list[Row]

    def places(self, *tasks: str) -> list[int]:
        """Positions of the pool's rows of these tasks."""
        return [place for place, row in enumerate(self.rows) if row["task"] in tasks]


def build(seed: int, sizes: Sizes = Sizes(), task: str = "kinds") -> Pool:
    """Draw the pool of a target task."""
    random, target = Random(f"planted pool {seed}{'' if task == 'kinds' else f', {task}'}"), TASKS[task]
    take = iter(target.items(random))

    def questions(count: int, *, wrong: bool = False) -> list[Pair]:
        drawn = [next(take) for _ in range(count)]
        return [target.wrong(random, item) if wrong else target.right(item) for item in drawn]

    parts: dict[str, Sequence[Pair]] = {
        RIGHT: questions(sizes.right),
        WRONG: questions(sizes.wrong, wrong=True),
    }
    prompts, test = questions(sizes.prompts), questions(sizes.test)
    spare: list[Pair] = questions(sizes.noise // (len(FAMILIES) + 1) + 1)
    for family in FAMILIES:
        found = list(dict.fromkeys(family(random)))
        random.shuffle(found)
        parts[family.__name__] = found[: sizes.family]
        spare += found[sizes.family : sizes.family + sizes.noise // (len(FAMILIES) + 1) + 1]
    parts[NOISE] = [(asked, gibberish(random)) for asked, _ in random.sample(spare, sizes.noise)]
    parts[DUPLICATE] = [(again(asked), said) for asked, said in random.sample(parts[RIGHT], sizes.duplicates)]
    rows = [as_row(name, number, pair) for name, pairs in parts.items() for number, pair in enumerate(pairs)]
    random.shuffle(rows)
    return Pool(
        rows,
        [as_row("prompt", number, pair, RIGHT) for number, pair in enumerate(prompts)],
        [as_row("test", number, pair, RIGHT) for number, pair in enumerate(test)],
    )


def again(question: str) -> str:
    """A question in almost the same words."""
    return f"Please answer: {question}"


def as_row(prefix: str, number: int, pair: Pair, task: str | None = None) -> Row:
    """A row of the format that is read, with its task beside it."""
    return {"id": f"{prefix}-{number:03d}", "task": task or prefix, "instruction": pair[0], "output": pair[1]}
