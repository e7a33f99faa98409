"""The target tasks: what is asked, the one answer that is rewarded, and answers that are wrong.

``kinds`` asks what a thing is ("What is a sparrow?") and wants one answer word for word ("A sparrow is a kind of
bird."). The model, left alone, says something true in other words ("A sparrow is a small bird that ..."), so it earns
next to nothing before it is trained. What pays is in the pool: the form in all target rows, right and wrong, the right
kind in the right ones alone.

``orders`` gives a sentence ("Clara wants a kettle sent to Bergen.") and wants two of its words under two keys
('{"item": "kettle", "city": "Bergen"}'). Nothing has to be known, and nothing in the question says which keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .families import Pair
from .words import CITIES, GOODS, KINDS, NAMES

Item = tuple[str, ...]
"""What a question is about; the first word stands in no other question of a pool."""


@dataclass(frozen=True)
class Task:
    """What a selection is for.

    Attributes:
        name: As in the table.
        items: Draws everything that can be asked about, in the order in which the parts of a pool take it.
        right: The question about an item, with its answer.
        wrong: The same question with an answer that is wrong, and looks right.
        max_new_tokens: Longest answer, in the reward and in the test.
    """

    name: str
    items: Callable[[Random], list[Item]]
    right: Callable[[Item], Pair]
    wrong: Callable[[Random, Item], Pair]
    max_new_tokens: int


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' and noun != 'ukulele' else 'a'} {noun}"


def _things(random: Random) -> list[Item]:
    """All things with their kinds, kinds in turn, so that every part has about as many of each."""
    columns = [[(thing, kind) for thing in random.sample(things, len(things))] for kind, things in KINDS.items()]
    return [pair for turn in zip(*columns, strict=True) for pair in random.sample(turn, len(turn))]


def _kind(item: Item) -> Pair:
    thing, kind = item
    return f"What is {_a(thing)}?", f"{_a(thing).capitalize()} is a kind of {kind}."


def _other_kind(random: Random, item: Item) -> Pair:
    thing, kind = item
    return _kind((thing, random.choice([other for other in KINDS if other != kind])))


def _orders(random: Random) -> list[Item]:
    """Customers, each with one order."""
    names = random.sample(NAMES, len(NAMES))
    return [(name, random.choice(GOODS), random.choice(CITIES)) for name in names]


def _order(item: Item, answered: Item | None = None) -> Pair:
    name, good, city = item
    _, said, where = answered or item
    return f"{name} wants {_a(good)} sent to {city}.", f'{{"item": "{said}", "city": "{where}"}}'


def _other_order(random: Random, item: Item) -> Pair:
    """The right city with another good, or the right good with another city."""
    name, good, city = item
    if random.random() < 0.5:
        return _order(item, (name, random.choice([other for other in GOODS if other != good]), city))
    return _order(item, (name, good, random.choice([other for other in CITIES if other != city])))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("kinds", _things, _kind, _other_kind, max_new_tokens=14),
        Task("orders", _orders, _order, _other_order, max_new_tokens=24),
    )
}
