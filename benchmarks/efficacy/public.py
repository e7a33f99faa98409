"""Families of real public questions, to stand in a pool beside the generated ones.

The package ``evals`` on PyPI (MIT) carries them: tasks that people wrote for evaluation, with the answers that count.
Tasks whose data have a licence of their own, by the package's list, are not among those below. No row is kept in this
repository; the wheel (46 MB) is fetched once, by :data:`FETCH`, and is read as it lies, not installed.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from dataflex.errors import DataError

from .families import Pair
from .pools import Pool, as_row
from .tasks import TASKS

WHEEL = "evals-3.0.1.post1-py3-none-any.whl"
SHA256 = "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"
FETCH = "pip download --no-deps --dest build/efficacy/public evals==3.0.1.post1"
"""From the root of the repository."""
DATA = "evals/registry/data"
FILES: dict[str, str] = {
    "anagrams": "anagrams/samples.jsonl",
    "area": "compare-countries-area/samples.jsonl",
    "binary": "positive-binary-operations/samples.jsonl",
    "colours": "pantone_to_hex/samples.jsonl",
    "dates": "imperial_date_to_string/samples.jsonl",
    "determinants": "determinant/samples.jsonl",
    "indonesian": "indonesian_numbers/indonesian_numbers.jsonl",
    "largest": "largest_country/samples.jsonl",
    "midpoints": "points_on_line/points_on_line.jsonl",
    "overlaps": "rectangles/samples.jsonl",
    "scales": "music_theory_scale_modes/samples.jsonl",
    "series": "next-val-series/next-val-series.jsonl",
    "swaps": "swap-words/samples.jsonl",
    "syllables": "syllables_long_words/long_word_samples.jsonl",
    "weights": "which_is_heavier/which_is_heavier.jsonl",
}
"""Name of a family -> its file in the wheel. All ask in English and want a few words."""
LONGEST = 240
"""Characters of a question; longer ones would not fit the cutoff of the benchmark beside their answer."""


@dataclass(frozen=True)
class PublicRows:
    """Public rows of a pool.

    Attributes:
        count: Rows of each family.
        wheel: The package; None where it is absent, and what was measured with it can still be looked up.
    """

    count: int
    wheel: Path | None

    @property
    def total(self) -> int:
        """Rows of all families, known without the package."""
        return self.count * len(FILES)

    @property
    def facts(self) -> list[Any]:
        """What says which rows they are."""
        return [SHA256, self.count, FILES]

    def beside(self, pool: Pool, seed: int) -> Pool:
        """A pool with these rows among its own.

        Nothing that any target task asks about stands in them, so no test row is in the pool in other words.

        Raises:
            DataError: The package is absent.
        """
        if self.wheel is None:
            raise DataError("the pool has public rows, and the package that carries them is absent", hint=FETCH)
        random = Random(f"public rows {seed}")
        asked = frozenset(item[0].lower() for task in TASKS.values() for item in task.items(Random(0)))
        rows = list(pool.rows)
        for name, pairs in families(self.wheel, asked).items():
            rows += [as_row(name, number, pair) for number, pair in enumerate(random.sample(pairs, self.count))]
        random.shuffle(rows)
        return replace(pool, rows=rows)


def find(folder: Path) -> Path | None:
    """The package in a folder, or None.

    Raises:
        DataError: A file of its name is there that is not the one that was published.
    """
    path = folder / WHEEL
    if not path.is_file():
        return None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise DataError(
            f"{path} is not the file that was published: expected SHA-256 {SHA256}, got {digest}",
            hint=f"fetch it again: {FETCH}",
        )
    return path


@lru_cache(maxsize=4)
def families(wheel: Path, without: frozenset[str] = frozenset()) -> dict[str, list[Pair]]:
    """Questions and answers of each family, each once, in the order of its file.

    Args:
        wheel: The package.
        without: Words of the target tasks, in lower case: a row in which one of them stands is left out, so that
            nothing that is asked about stands in the pool in other words.
    """
    with zipfile.ZipFile(wheel) as package:
        return {
            name: list(_pairs(package.read(f"{DATA}/{path}").decode("utf-8").splitlines(), without))
            for name, path in FILES.items()
        }


def _pairs(lines: Sequence[str], without: frozenset[str]) -> Iterator[Pair]:
    asked = set()
    for line in lines:
        question, answer = _pair(json.loads(line))
        known = without.intersection(re.findall(r"\w+", f"{question} {answer}".lower()))
        if question not in asked and len(question) <= LONGEST and not known:
            asked.add(question)
            yield question, answer


def _pair(row: dict[str, Any]) -> Pair:
    """System and user message as one question; the first of the answers that count."""
    spoken = [message["content"].strip() for message in row["input"]]
    question = "\n".join(text for text in spoken if text.rstrip(".") != "You are a helpful assistant")
    ideal = row["ideal"]
    return question, (ideal if isinstance(ideal, str) else ideal[0]).strip()
