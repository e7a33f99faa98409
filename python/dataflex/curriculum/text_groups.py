"""Groups of rows by their own texts, for the report: the script that they are in, and the words that they share.

Data without a task column has no groups to compare shares of. Scripts are counted by letters. Rows are clustered by
their words: tf-idf over the 1,000 most telling words of the prompts, unit length, eight centres found by spherical
k-means on a sample, then each row to its nearest centre, which is named by its three heaviest words. Nothing is
selected by these groups.
Texts of other scripts than those with spaces between words have few words: their script tells them apart.
"""

from __future__ import annotations

import re
import unicodedata
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import overload

import numpy as np
from numpy.typing import NDArray

from dataflex.data.dataset import TokenizedDataset
from dataflex.types import Sample

MOST_ROWS = 300_000
"""Rows beyond which texts are not read: that takes a minute for a million."""
MOST_LETTERS = 400
"""Characters of a row that are looked at."""
MOST_SAMPLE = 5_000
"""Rows that the words and the centres are found from."""
WORDS, CENTRES, ROUNDS = 1_000, 8, 12
_SCRIPTS = {"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese", "HANGUL": "Korean"}
_WORD = re.compile(r"[^\W\d_]{2,24}")
_BLOCK = 4_096


@dataclass(frozen=True, slots=True)
class TextGroups:
    """Groups of n rows; empty where texts were not read.

    Attributes:
        scripts: The script of each, None for one without letters.
        words: The cluster of each, None for one without a telling word.
    """

    scripts: list[str | None]
    words: list[str | None]


def most_similar(dataset: TokenizedDataset, place: int, count: int) -> list[tuple[int, float]]:
    """The rows whose words are most like those of one, best first.

    Args:
        dataset: n rows.
        place: Position of the row.
        count: How many at the most.

    Returns:
        Positions and cosines of the tf-idf of their words, above 0; none where too many rows would have to be read.
    """
    if len(dataset) > MOST_ROWS:
        return []
    rows = [_WORD.findall(text_of(sample).lower()) for sample in dataset.samples]
    own = Counter(rows[place])
    spread = Counter(word for row in rows for word in set(row) & own.keys())
    weights = {word: float(np.log(1 + len(rows) / found)) for word, found in spread.items()}
    sizes = {word: weight**2 for word, weight in weights.items()}
    whole = sum(sizes.values())
    found = []
    for other, row in enumerate(rows):
        words = set(row)
        shared = sum(sizes[word] for word in words & own.keys())
        if other != place and shared:
            # A word that the row lacks weighs as much as the rarest.
            strange = float(np.log(1 + len(rows))) ** 2 * len(words - own.keys())
            size = sum(sizes[word] for word in words & own.keys()) + strange
            found.append((other, float(shared / np.sqrt(whole * size))))
    return sorted(found, key=lambda pair: -pair[1])[:count]


_known: weakref.WeakKeyDictionary[TokenizedDataset, TextGroups] = weakref.WeakKeyDictionary()


def text_groups(dataset: TokenizedDataset) -> TextGroups:
    """The groups of a dataset's rows, found once for each dataset."""
    found = _known.get(dataset)
    if found is None:
        found = TextGroups([], []) if len(dataset) > MOST_ROWS else groups_of_texts(list(map(text_of, dataset.samples)))
        _known[dataset] = found
    return found


def groups_of_texts(texts: Sequence[str]) -> TextGroups:
    """The groups of some texts; the same texts have the same ones."""
    scripts = [script(text) for text in texts]
    return TextGroups(scripts, clusters(_Words(texts)))


class _Words(Sequence[list[str]]):
    """The words of each text, found when they are asked for: those of all would take kilobytes a row."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, index: int) -> list[str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[str]]: ...
    def __getitem__(self, index: int | slice) -> list[str] | list[list[str]]:
        if isinstance(index, slice):
            return [_WORD.findall(text.lower()) for text in self._texts[index]]
        return _WORD.findall(self._texts[index].lower())


def text_of(sample: Sample) -> str:
    """The beginning of what is asked; of a row without a prompt, of its answer."""
    prompt = sample.prompt[-1]["content"] if sample.prompt else ""
    return (prompt or sample.reference or "")[:MOST_LETTERS]


def script(text: str) -> str | None:
    """The script of most letters (``Latin``, ``Cyrillic``, ``Chinese``, ...); None for a text without letters."""
    if text.isascii():
        return "Latin" if any(map(str.isalpha, text)) else None
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    return counts.most_common(1)[0][0] if counts else None


@lru_cache(maxsize=65_536)
def _script(letter: str) -> str:
    first = unicodedata.name(letter, "other").split(" ")[0].split("-")[0]
    return _SCRIPTS.get(first, first.capitalize())


def clusters(rows: Sequence[Sequence[str]]) -> list[str | None]:
    """The name of each row's cluster; None for a row without one of the telling words.

    Args:
        rows: The words of each row.
    """
    sample = [rows[place] for place in np.linspace(0, len(rows) - 1, min(len(rows), MOST_SAMPLE)).astype(int)]
    words = _telling(sample)
    if len(words) < CENTRES:
        return [None] * len(rows)
    weights = np.array(list(words.values()), dtype=np.float32)
    places = {word: place for place, word in enumerate(words)}
    found = np.concatenate(list(_vectors(sample, places, weights)))  # (sample, words)
    centres = _centres(found[found.any(axis=1)])
    names = _names(centres, list(words))
    labels: list[str | None] = []
    for vectors in _vectors(rows, places, weights):
        nearest, known = (vectors @ centres.T).argmax(axis=1), vectors.sum(axis=1) > 0
        labels += [names[place] if one else None for place, one in zip(nearest.tolist(), known.tolist(), strict=True)]
    return labels


def _telling(rows: Sequence[Sequence[str]]) -> dict[str, float]:
    """The words that more than one row and less than half of the rows have, most frequent first, with their idf."""
    counts = Counter(word for row in rows for word in sorted(set(row)))
    kept = [(word, count) for word, count in counts.most_common() if 2 <= count < len(rows) / 2]
    return {word: float(np.log(len(rows) / count)) for word, count in kept[:WORDS]}


def _vectors(
    rows: Sequence[Sequence[str]], places: dict[str, int], weights: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    """Blocks ``(rows, words)`` float32 of unit vectors; a row without a telling word is zero."""
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        found = np.zeros((len(block), len(places)), dtype=np.float32)
        for number, row in enumerate(block):
            known = [places[word] for word in set(row) if word in places]
            found[number, known] = weights[known]
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        yield found / np.maximum(norms, np.finfo(np.float32).tiny)


def _centres(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """``(centres, words)`` float32: spherical k-means; each first centre is the row farthest from those before it."""
    chosen = [0]
    nearest = rows @ rows[0]
    for _ in range(1, min(CENTRES, len(rows))):
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, rows @ rows[chosen[-1]])
    centres = rows[chosen]
    for _ in range(ROUNDS):
        labels = (rows @ centres.T).argmax(axis=1)
        for place in range(len(centres)):
            members = rows[labels == place]
            if len(members):
                total = members.sum(axis=0)
                centres[place] = total / np.linalg.norm(total)
    return centres


def _names(centres: NDArray[np.float32], words: Sequence[str]) -> list[str]:
    heaviest = np.argsort(-centres, axis=1, kind="stable")[:, :3]
    return [" ".join(words[place] for place in row) for row in heaviest.tolist()]
