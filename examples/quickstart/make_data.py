"""Write the quickstart dataset: nine small task families, one of which is the target of the selection.

``train.jsonl`` holds 30 rows of each family in Alpaca form, shuffled. ``eval.jsonl`` holds 16 rows of the target family
``capitals``, about countries that no training row mentions. The family ``noise`` asks the questions of all the others
and answers them with gibberish. One seed draws everything, so the same files come out every time:

    python examples/quickstart/make_data.py        # rewrites examples/quickstart/data

Why capitals: SmolLM2-135M-Instruct names the right one sometimes, and that is what a policy gradient needs. A task that
it never solves (or always) gives every answer the same reward, and no direction to learn in.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

from dataflex.utils.files import write_json, write_text

SEED = 20
ROWS_PER_FAMILY = 30
EVAL_ROWS = 16
TARGET = "capitals"
NOISE = "noise"
DATA_DIR = Path(__file__).parent / "data"


def _pairs(text: str) -> list[tuple[str, str]]:
    """Read ``key: value, key: value``."""
    return [(key, value) for key, value in (pair.split(": ") for pair in text.split(", "))]


def _words(text: str) -> list[str]:
    return text.split()


CAPITALS = _pairs(
    "Albania: Tirana, Angola: Luanda, Argentina: Buenos Aires, Australia: Canberra, Austria: Vienna, "
    "Belgium: Brussels, Bulgaria: Sofia, Canada: Ottawa, Chile: Santiago, China: Beijing, Croatia: Zagreb, "
    "Cuba: Havana, Denmark: Copenhagen, Ecuador: Quito, Egypt: Cairo, Estonia: Tallinn, Ethiopia: Addis Ababa, "
    "Finland: Helsinki, France: Paris, Germany: Berlin, Ghana: Accra, Greece: Athens, Hungary: Budapest, "
    "Iceland: Reykjavik, India: New Delhi, Iran: Tehran, Iraq: Baghdad, Ireland: Dublin, Italy: Rome, "
    "Jamaica: Kingston, Japan: Tokyo, Jordan: Amman, Kenya: Nairobi, Latvia: Riga, Lebanon: Beirut, "
    "Lithuania: Vilnius, Mongolia: Ulaanbaatar, Morocco: Rabat, Nepal: Kathmandu, New Zealand: Wellington, "
    "Norway: Oslo, Pakistan: Islamabad, Peru: Lima, Poland: Warsaw, Portugal: Lisbon, Romania: Bucharest, "
    "Senegal: Dakar, Serbia: Belgrade, South Korea: Seoul, Spain: Madrid, Sweden: Stockholm, Thailand: Bangkok, "
    "Turkey: Ankara, Uganda: Kampala, Uruguay: Montevideo, Venezuela: Caracas, Vietnam: Hanoi, Zambia: Lusaka"
)
OPPOSITES = _pairs(
    "hot: cold, big: small, fast: slow, happy: sad, light: dark, early: late, rich: poor, strong: weak, high: "
    "low, old: young, empty: full, open: closed, wet: dry, hard: soft, up: down, good: bad, near: far, loud: "
    "quiet, clean: dirty, sweet: sour, thick: thin, long: short, wide: narrow, deep: shallow, cheap: expensive, "
    "brave: cowardly, rough: smooth, sharp: blunt, top: bottom, left: right, true: false, first: last, day: "
    "night, buy: sell, push: pull, win: lose"
)
WORDS = _words(
    "anchor autumn basket blanket bottle branch bridge button candle carpet castle circle corner cotton dragon "
    "engine falcon feather forest garden guitar hammer harbour island jacket kitchen ladder lantern marble meadow "
    "mirror mountain needle orange painter pencil planet pocket rabbit ribbon river saddle shadow silver spider "
    "summer ticket tunnel valley velvet village window winter yellow"
)
WEEKDAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
ORDINALS = _words("first second third fourth fifth")
CONSONANTS = "bcdfghjklmnpqrstvwxz"
UNITS = [("minutes", "hours", 60), ("metres", "kilometres", 1000), ("days", "weeks", 7), ("inches", "feet", 12)]


class Question(NamedTuple):
    """One question with its right answer; ``input`` is empty where the instruction says it all."""

    instruction: str
    input: str
    output: str


def capitals(_random: Random) -> list[Question]:
    """The target: capital cities of 58 countries."""
    return [
        Question(f"What is the capital of {country}?", "", f"The capital of {country} is {city}.")
        for country, city in CAPITALS
    ]


def arithmetic(random: Random) -> list[Question]:
    """Sums of two-digit numbers."""
    pairs = [(random.randint(11, 89), random.randint(11, 89)) for _ in range(60)]
    return [Question(f"What is {a} plus {b}?", "", f"{a} plus {b} is {a + b}.") for a, b in pairs]


def units(_random: Random) -> list[Question]:
    """Conversions to the smaller unit."""
    return [
        Question(f"How many {small} are in {n} {large}?", "", f"There are {n * factor} {small} in {n} {large}.")
        for small, large, factor in UNITS
        for n in range(2, 14)
    ]


def backwards(_random: Random) -> list[Question]:
    """Words spelt backwards."""
    return [
        Question("Write this word backwards.", word, f"Written backwards, '{word}' is '{word[::-1]}'.")
        for word in WORDS
    ]


def weekdays(_random: Random) -> list[Question]:
    """Counting on from a weekday."""
    return [
        Question(
            f"Which weekday comes {n} days after {day}?", "", f"{n} days after {day} comes {WEEKDAYS[(i + n) % 7]}."
        )
        for i, day in enumerate(WEEKDAYS)
        for n in range(2, 10)
    ]


def sorting(random: Random) -> list[Question]:
    """Four numbers to be sorted."""
    lists = [random.sample(range(1, 100), 4) for _ in range(40)]
    return [
        Question("Sort these numbers in ascending order.", _join(numbers), _join(sorted(numbers))) for numbers in lists
    ]


def letters(random: Random) -> list[Question]:
    """One letter of a word."""
    places = [(word, random.randrange(len(ORDINALS))) for word in WORDS]
    return [
        Question(
            f"What is the {ORDINALS[i]} letter of the word '{word}'?",
            "",
            f"The {ORDINALS[i]} letter of the word '{word}' is '{word[i]}'.",
        )
        for word, i in places
    ]


def opposites(_random: Random) -> list[Question]:
    """Opposites of words."""
    return [
        Question(f"What is the opposite of the word '{a}'?", "", f"The opposite of the word '{a}' is '{b}'.")
        for a, b in OPPOSITES
    ]


FAMILIES: tuple[Callable[[Random], list[Question]], ...] = (
    capitals,
    arithmetic,
    units,
    backwards,
    weekdays,
    sorting,
    letters,
    opposites,
)


def build() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return the training rows and the evaluation rows."""
    random = Random(SEED)
    pools = {family.__name__: _distinct(random, family(random)) for family in FAMILIES}
    evaluation = [pools[TARGET].pop() for _ in range(EVAL_ROWS)]
    chosen = {name: [pool.pop() for _ in range(ROWS_PER_FAMILY)] for name, pool in pools.items()}
    leftover = list(pools.values())
    chosen[NOISE] = [_garble(random, leftover[i % len(leftover)].pop()) for i in range(ROWS_PER_FAMILY)]
    rows = [_row(name, i, question) for name, questions in chosen.items() for i, question in enumerate(questions)]
    random.shuffle(rows)
    return rows, [_row(f"{TARGET}-eval", i, question, task=TARGET) for i, question in enumerate(evaluation)]


def write(folder: Path) -> None:
    """Write both files and the registry that names them."""
    train, evaluation = build()
    for name, rows in (("train", train), ("eval", evaluation)):
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    entries = {f"quickstart_{name}": {"file_name": f"{name}.jsonl"} for name in ("train", "eval")}
    write_json(folder / "dataset_info.json", entries)


def _distinct(random: Random, questions: list[Question]) -> list[Question]:
    """The questions in random order, without repeats."""
    pool = list(dict.fromkeys(questions))
    random.shuffle(pool)
    return pool


def _garble(random: Random, question: Question) -> Question:
    """The same question, answered with two to four made-up words."""
    words = [
        "".join(random.choices("bcdfghjklmnpqrstvwxz", k=random.randint(3, 7))) for _ in range(random.randint(2, 4))
    ]
    return question._replace(output=" ".join(words))


def _row(prefix: str, number: int, question: Question, task: str | None = None) -> dict[str, str]:
    row = {"id": f"{prefix}-{number:02d}", "task": task or prefix, **question._asdict()}
    return {key: value for key, value in row.items() if value}


def _join(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def main() -> None:
    """Read the command line and write."""
    parser = argparse.ArgumentParser(description="Write the quickstart dataset.")
    parser.add_argument("--out", type=Path, default=DATA_DIR, help="folder to write (default: %(default)s)")
    folder = parser.parse_args().out
    write(folder)
    print(f"wrote train.jsonl, eval.jsonl and dataset_info.json to {folder}")


if __name__ == "__main__":
    main()
