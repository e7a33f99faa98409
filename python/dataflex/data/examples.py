"""Tokenised samples one by one, and collections of them: as objects in memory, or as arrays."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from dataflex.data.encoding import IGNORE_INDEX, Encoded
from dataflex.data.notes import counted
from dataflex.data.token_rows import TokenPart, TokenRows, joined
from dataflex.types import Sample
from dataflex.utils.shown import quoted

PART = 256
"""Rows that are packed at once."""


@dataclass(frozen=True, slots=True, repr=False)
class Example:
    """A tokenised sample.

    Attributes:
        sample: Where it comes from.
        input_ids: t token ids.
        labels: t labels, -100 where there is no loss.
        truncated: Tokens were cut to fit ``cutoff_len``.
        notes: What stands out in it, see :mod:`dataflex.data.notes`.
    """

    sample: Sample
    input_ids: list[int]
    labels: list[int]
    truncated: bool = False
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        cut = ", cut" if self.truncated else ""
        return f"Example({quoted(self.sample.id)}, {len(self.input_ids):,} tokens, {self.num_labels:,} learnt{cut})"

    @property
    def num_labels(self) -> int:
        """Tokens that carry loss; a label on the first token does not: nothing before it could predict it."""
        predicted = self.labels[1:]
        return len(predicted) - predicted.count(IGNORE_INDEX)


class _ArrayExample(Example):
    """An example of arrays, each part of which is read when it is asked for first."""

    __slots__ = ("_place", "_rows")
    _place: int
    _rows: ArrayRows

    @classmethod
    def at(cls, rows: ArrayRows, place: int) -> Example:
        """The example of a row."""
        made = object.__new__(cls)
        object.__setattr__(made, "_rows", rows)
        object.__setattr__(made, "_place", place)
        return made

    def __getattr__(self, name: str) -> Any:
        """Called for what has no value yet."""
        if name not in _PARTS:
            raise AttributeError(name)
        value = self._rows.part(name, self._place)
        object.__setattr__(self, name, value)
        return value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Example):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _PARTS)

    __hash__ = None  # type: ignore[assignment]


_PARTS = ("sample", "input_ids", "labels", "truncated", "notes")


class TokenisedRows(ABC):
    """N tokenised samples."""

    samples: Sequence[Sample]
    """The sample of each."""

    @abstractmethod
    def __len__(self) -> int:
        """How many."""

    @abstractmethod
    def example(self, place: int) -> Example:
        """One of them."""

    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """``(n,)`` tokens of each."""

    @abstractmethod
    def counts(self) -> NDArray[np.int64]:
        """``(n,)`` tokens of each that carry loss."""

    @abstractmethod
    def truncated(self) -> NDArray[np.bool_]:
        """``(n,)`` whether tokens were cut."""

    @abstractmethod
    def count_notes(self, places: NDArray[np.int64] | None) -> dict[str, int]:
        """How many of some, or of all, have each note, the most frequent first."""

    @property
    @abstractmethod
    def id_bounds(self) -> tuple[int, int]:
        """No id or label (but -100) is below the first or above the second."""

    def known_fingerprint(self, places: NDArray[np.int64] | None) -> str | None:
        """The fingerprint of a dataset of some, or of all, where it is written down."""
        del places
        return None


class ExampleRows(TokenisedRows):
    """Examples as they were made."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._examples = list(examples)

    @property
    def samples(self) -> Sequence[Sample]:  # type: ignore[override]
        """The sample of each."""
        return [example.sample for example in self._examples]

    def __len__(self) -> int:
        return len(self._examples)

    def example(self, place: int) -> Example:
        """One of them."""
        return self._examples[place]

    def lengths(self) -> NDArray[np.int64]:
        """See the base class."""
        return np.array([len(example.input_ids) for example in self._examples], dtype=np.int64)

    def counts(self) -> NDArray[np.int64]:
        """See the base class."""
        return np.array([example.num_labels for example in self._examples], dtype=np.int64)

    def truncated(self) -> NDArray[np.bool_]:
        """See the base class."""
        return np.array([example.truncated for example in self._examples], dtype=np.bool_)

    def count_notes(self, places: NDArray[np.int64] | None) -> dict[str, int]:
        """See the base class."""
        chosen = range(len(self)) if places is None else places.tolist()
        return counted(self._examples[place].notes for place in chosen)

    @property
    def id_bounds(self) -> tuple[int, int]:
        """See the base class."""
        ids = {number for example in self._examples for number in example.input_ids}
        ids |= {number for example in self._examples for number in example.labels} - {IGNORE_INDEX}
        return min(ids, default=0), max(ids, default=0)


class ArrayRows(TokenisedRows):
    """Tokens as arrays, beside samples.

    Args:
        tokens: The arrays, of n rows.
        samples: The sample of each.
        fingerprints: Of all rows (``all``), and of those with a label (``labelled``), where they are known.
    """

    def __init__(
        self, tokens: TokenRows, samples: Sequence[Sample], fingerprints: dict[str, str] | None = None
    ) -> None:
        self.tokens = tokens
        self.samples = samples
        self._fingerprints = fingerprints or {}

    def __len__(self) -> int:
        return len(self.tokens)

    def example(self, place: int) -> Example:
        """One of them; its parts are read when they are asked for."""
        return _ArrayExample.at(self, place)

    def part(self, name: str, place: int) -> Any:
        """A part of one of them by the name of the attribute of :class:`Example`."""
        if name == "sample":
            return self.samples[place]
        if name == "truncated":
            return bool(self.tokens.truncated[place])
        parts = {"input_ids": self.tokens.ids, "labels": self.tokens.labels, "notes": self.tokens.notes_of}
        return parts[name](place)

    def lengths(self) -> NDArray[np.int64]:
        """See the base class."""
        return self.tokens.lengths()

    def counts(self) -> NDArray[np.int64]:
        """See the base class."""
        return self.tokens.counts.astype(np.int64)

    def truncated(self) -> NDArray[np.bool_]:
        """See the base class."""
        return self.tokens.truncated

    def count_notes(self, places: NDArray[np.int64] | None) -> dict[str, int]:
        """See the base class."""
        return self.tokens.count_notes(places)

    @property
    def id_bounds(self) -> tuple[int, int]:
        """See the base class."""
        return self.tokens.id_bounds

    def known_fingerprint(self, places: NDArray[np.int64] | None) -> str | None:
        """See the base class."""
        if places is None:
            return self._fingerprints.get("all")
        labelled = np.flatnonzero(self.tokens.counts)
        return self._fingerprints.get("labelled") if np.array_equal(places, labelled) else None


class ChosenSamples(Sequence[Sample]):
    """Some samples of a sequence, by their positions."""

    def __init__(self, samples: Sequence[Sample], places: NDArray[np.int64]) -> None:
        self.all = samples
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self.all[place] for place in self.places[index].tolist()]
        return self.all[int(self.places[range(len(self))[index]])]

    def __iter__(self) -> Iterator[Sample]:
        return (self.all[place] for place in self.places.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Sample.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]


def packed_rows(examples: Iterable[Example]) -> TokenisedRows:
    """Examples that are taken one by one, their tokens as arrays, unless a label is another token than its own."""
    parts: list[TokenPart] = []
    samples: list[Sample] = []
    remaining = iter(examples)
    while part := list(islice(remaining, PART)):
        if any(_labels_others(each) for each in part):
            before = ArrayRows(joined(parts), samples)
            return ExampleRows([*map(before.example, range(len(before))), *part, *remaining])
        parts.append(
            TokenPart.of([Encoded.of(each.input_ids, each.labels, each.truncated, each.notes) for each in part])
        )
        samples += [each.sample for each in part]
    return ArrayRows(joined(parts), samples)


def _labels_others(example: Example) -> bool:
    pairs = zip(example.input_ids, example.labels, strict=True)
    return any(label not in (IGNORE_INDEX, own) for own, label in pairs)
