"""A planted pool: rows of a target task with right and with wrong answers among those of eight other families.

The target asks what a thing is ("What is a sparrow?") and wants one answer word for word ("A sparrow is a kind of
bird."). The model, left alone, says something true in other words ("A sparrow is a small bird that ..."), so it earns
next to nothing before it is trained. What pays is in the pool: the form in all target rows, right and wrong, the right
kind in the right ones alone.

Things are drawn by seed. Target prompts, test rows and the rows of the pool are about different things: no word that is
asked about stands in two of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from .families import FAMILIES, Pair, gibberish
from .words import KINDS

RIGHT, WRONG, NOISE = "target", "wrong", "noise"
"""Tasks of the rows: target questions with right answers, with wrong ones; any questions with gibberish as answer."""

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
    """

    right: int = 24
    wrong: int = 24
    family: int = 26
    noise: int = 24
    prompts: int = 12
    test: int = 48


@dataclass(frozen=True)
class Pool:
    """What one seed draws: rows to choose from, what the choice is for, and what the trained model is tested on."""

    rows: list[Row]
    prompts: list[Row]
    test: list[Row]

    def places(self, *tasks: str) -> list[int]:
        """Positions of the pool's rows of these tasks."""
        return [place for place, row in enumerate(self.rows) if row["task"] in tasks]


def build(seed: int, sizes: Sizes = Sizes()) -> Pool:
    """Draw a pool."""
    random = Random(f"planted pool {seed}")
    things = _things(random)
    take = iter(things)

    def questions(count: int, *, wrong: bool = False) -> list[Pair]:
        drawn = [next(take) for _ in range(count)]
        return [(question(thing), answer(thing, _other(random, kind) if wrong else kind)) for thing, kind in drawn]

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
    rows = [_row(name, number, pair) for name, pairs in parts.items() for number, pair in enumerate(pairs)]
    random.shuffle(rows)
    return Pool(
        rows,
        [_row("prompt", number, pair, RIGHT) for number, pair in enumerate(prompts)],
        [_row("test", number, pair, RIGHT) for number, pair in enumerate(test)],
    )


def question(thing: str) -> str:
    """What the target task asks."""
    return f"What is {_a(thing)}?"


def answer(thing: str, kind: str) -> str:
    """The one answer that is rewarded."""
    return f"{_a(thing).capitalize()} is a kind of {kind}."


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' and noun != 'ukulele' else 'a'} {noun}"


def _things(random: Random) -> list[tuple[str, str]]:
    """All things with their kinds, kinds in turn, so that every part has about as many of each."""
    columns = [[(thing, kind) for thing in random.sample(things, len(things))] for kind, things in KINDS.items()]
    return [pair for turn in zip(*columns, strict=True) for pair in random.sample(turn, len(turn))]


def _other(random: Random, kind: str) -> str:
    return random.choice([other for other in KINDS if other != kind])


def _row(prefix: str, number: int, pair: Pair, task: str | None = None) -> Row:
    return {"id": f"{prefix}-{number:03d}", "task": task or prefix, "instruction": pair[0], "output": pair[1]}
