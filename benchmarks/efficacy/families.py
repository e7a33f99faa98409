"""The eight other families of a planted pool: what stands beside the target, each in a form of its own."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .words import CAPITALS, CONSONANTS, OPPOSITES, ORDINALS, PLAIN, UNITS, WEEKDAYS

Pair = tuple[str, str]
"""A question and its answer."""


def sums(random: Random) -> list[Pair]:
    """Sums of two-digit numbers."""
    pairs = [(random.randint(11, 89), random.randint(11, 89)) for _ in range(80)]
    return [(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.") for a, b in pairs]


def units(_random: Random) -> list[Pair]:
    """Conversions to the smaller unit."""
    return [
        (f"How many {small} are in {n} {large}?", f"There are {n * factor} {small} in {n} {large}.")
        for small, large, factor in UNITS
        for n in range(2, 14)
    ]


def backwards(_random: Random) -> list[Pair]:
    """Words spelt backwards."""
    return [(f"Write the word {word} backwards.", word[::-1]) for word in PLAIN]


def weekdays(_random: Random) -> list[Pair]:
    """Counting on from a weekday."""
    return [
        (f"Which weekday comes {n} days after {day}?", f"{n} days after {day} comes {WEEKDAYS[(i + n) % 7]}.")
        for i, day in enumerate(WEEKDAYS)
        for n in range(2, 10)
    ]


def sorting(random: Random) -> list[Pair]:
    """Four numbers to be sorted."""
    lists = [random.sample(range(1, 100), 4) for _ in range(60)]
    return [(f"Sort these numbers in ascending order: {_join(numbers)}", _join(sorted(numbers))) for numbers in lists]


def letters(random: Random) -> list[Pair]:
    """One letter of a word."""
    places = [(word, random.randrange(len(ORDINALS))) for word in PLAIN]
    return [
        (f"What is the {ORDINALS[i]} letter of the word '{word}'?", f"The {ORDINALS[i]} letter is '{word[i]}'.")
        for word, i in places
    ]


def opposites(_random: Random) -> list[Pair]:
    """Opposites of words."""
    return [(f"What is the opposite of {a}?", b) for a, b in OPPOSITES]


def capitals(_random: Random) -> list[Pair]:
    """Capital cities."""
    return [(f"What is the capital of {land}?", f"The capital of {land} is {city}.") for land, city in CAPITALS]


FAMILIES: tuple[Callable[[Random], list[Pair]], ...] = (
    sums,
    units,
    backwards,
    weekdays,
    sorting,
    letters,
    opposites,
    capitals,
)


def gibberish(random: Random) -> str:
    """Two to four made-up words."""
    words = ["".join(random.choices(CONSONANTS, k=random.randint(3, 7))) for _ in range(random.randint(2, 4))]
    return " ".join(words)


def _join(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
