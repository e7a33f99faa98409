"""Samples of several sources by their positions, read and converted when they are asked for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any, overload

from dataflex.data.formats import as_row
from dataflex.data.row_files import Digest, SourceRows
from dataflex.data.rows import Layout, Refused, RowConverter, convert_rows, unique_ids
from dataflex.errors import DataError
from dataflex.types import Sample

PART = 256
"""Samples that are read, converted and encoded at once: enough to keep a tokenizer's threads busy."""
_DRAW_SEED = 0


@dataclass(frozen=True)
class Source:
    """One source.

    Attributes:
        where: Its name for messages.
        rows: All its rows.
        layout: How they are to be read.
        name: Its name as it was asked for; empty for objects.
        drawn: How many of its rows are drawn at random with a fixed seed; None: all are taken.
    """

    where: str
    rows: SourceRows
    layout: Layout
    name: str = ""
    drawn: int | None = None

    @cached_property
    def numbers(self) -> Sequence[int]:
        """The numbers of the rows to read, in the order of the source."""
        import numpy as np

        total = len(self.rows)
        if self.drawn is None:
            return range(total)
        if self.drawn > total:
            raise DataError(f"{self.where}: num_samples is {self.drawn}, but there are {total} rows")
        drawn = np.random.default_rng(_DRAW_SEED).permutation(total)[: self.drawn]
        return np.sort(drawn).tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class OriginalRow:
    """A row as its source has it.

    Attributes:
        where: Name of the source, for messages.
        number: Number in its source, from 0.
        value: The row.
        text: The row's own JSON, where it comes from a JSON Lines file.
    """

    where: str
    number: int
    value: Mapping[str, Any]
    text: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """Positions of neighbouring samples of one source: ``start`` to ``stop`` among all samples."""

    source: int
    start: int
    stop: int


class SampleReader(Sequence[Sample]):
    """The samples of several sources, one after the other: row numbers go on from one to the next.

    Single samples have the ids of their rows; iterating over all of them also makes equal ids different.

    Args:
        sources: The sources.
        max_samples: Take the first so many rows of each.
    """

    def __init__(self, sources: Sequence[Source], max_samples: int | None = None) -> None:
        self.sources = sources
        self.max_samples = max_samples
        self._converters: dict[int, RowConverter] = {}

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return self.take(range(*index.indices(len(self))))
        (sample,) = self.take([range(len(self))[index]])
        return sample

    def __iter__(self) -> Iterator[Sample]:
        found: list[Sample] = []
        for place in range(len(self.sources)):
            refused: Refused | None = None
            for part in self.parts(place):
                samples, wrong = self.read(part)
                found += samples
                refused = wrong if refused is None else refused.add(wrong)
            self.refuse(place, refused, whole=True)
        return iter(unique_ids(found))

    def take(self, places: Sequence[int]) -> list[Sample]:
        """The samples at some positions, in that order; no other row is read.

        Raises:
            DataError: Their rows cannot be read.
        """
        found: list[Sample] = []
        for place, members in groupby(places, key=lambda at: bisect_right(self._ends, at)):
            start = self._ends[place - 1] if place else 0
            samples, wrong = self._convert(place, [at - start for at in members])
            self.refuse(place, wrong, whole=False)
            found += samples
        return found

    @property
    def num_rows(self) -> int:
        """Rows of all sources, those that are not taken included."""
        return self._offsets[-1]

    def take_rows(self, rows: Sequence[int]) -> list[Sample]:
        """The samples with these numbers (``Sample.row``), in that order; no other row is read.

        Raises:
            DataError: There are no such rows, or they cannot be read.
        """
        found: list[Sample] = []
        for place, members in groupby(rows, key=self._source_of):
            numbers = [row - self._offsets[place] for row in members]
            samples, wrong = self._convert_numbers(place, numbers)
            self.refuse(place, wrong, whole=False)
            found += samples
        return found

    def originals(self, rows: Sequence[int]) -> list[OriginalRow]:
        """The rows with these numbers (``Sample.row``) as they stand in their sources, in that order.

        A row that only the mapping of its entry in ``dataset_info.json`` makes readable becomes one of messages.

        Raises:
            DataError: There are no such rows, or they cannot be read.
        """
        found: dict[int, OriginalRow] = {}
        for place, members in groupby(sorted(set(rows)), key=self._source_of):
            source, start = self.sources[place], self._offsets[place]
            numbers = [row - start for row in members]
            for number, value in zip(numbers, source.rows.take(numbers), strict=True):
                original = OriginalRow(source.where, number, value, source.rows.text(number))
                found[start + number] = _self_contained(original, source.layout)
        return [found[row] for row in rows]

    def _source_of(self, row: int) -> int:
        if not 0 <= row < self._offsets[-1]:
            raise DataError(f"there is no row {row}: the data has {self._offsets[-1]} rows")
        return bisect_right(self._offsets, row) - 1

    def parts(self, source: int | None = None) -> list[Part]:
        """All samples, or those of one source, in parts of up to :data:`PART`."""
        found = []
        for place in range(len(self.sources)) if source is None else [source]:
            start = self._ends[place - 1] if place else 0
            for first in range(start, self._ends[place], PART):
                found.append(Part(place, first, min(first + PART, self._ends[place])))
        return found

    def read(self, part: Part) -> tuple[list[Sample], Refused]:
        """The samples of a part whose rows can be read, and what is wrong with the others."""
        start = self._ends[part.source - 1] if part.source else 0
        return self._convert(part.source, range(part.start - start, part.stop - start))

    def refuse(self, source: int, refused: Refused | None, *, whole: bool) -> None:
        """Raise what is wrong with rows of one source; see :meth:`dataflex.data.rows.RowConverter.refuse`."""
        if refused is None:
            raise DataError(f"{self.sources[source].where}: there are no rows")
        self._converter(source).refuse(refused, whole=whole)

    def digest(self, into: Digest) -> None:
        """Add all that the samples depend on.

        Raises:
            DataError: Rows have values without bytes of their own, or cannot be read.
        """
        into.update(repr(self.max_samples).encode())
        for source in self.sources:
            into.update(repr((source.layout, source.name, source.drawn)).encode())
            source.rows.digest(into)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(source.numbers[: self.max_samples]) for source in self.sources))

    @cached_property
    def _offsets(self) -> list[int]:
        """Rows of the sources before each."""
        return [0, *accumulate(len(source.rows) for source in self.sources)]

    def _convert(self, source: int, places: Sequence[int]) -> tuple[list[Sample], Refused]:
        """Samples at positions inside a source."""
        return self._convert_numbers(source, [self.sources[source].numbers[place] for place in places])

    def _convert_numbers(self, source: int, numbers: Sequence[int]) -> tuple[list[Sample], Refused]:
        """Samples of rows by their numbers in a source."""
        own = self.sources[source]
        samples, refused = self._converter(source).convert(own.rows.take(numbers), numbers, self._offsets[source])
        return [replace(sample, source=own.name) for sample in samples], refused

    def _converter(self, source: int) -> RowConverter:
        if source not in self._converters:
            own = self.sources[source]
            if not own.numbers:
                raise DataError(f"{own.where}: there are no rows")
            (first,) = own.rows.take(own.numbers[:1])
            self._converters[source] = RowConverter(first, own.where, own.layout)
        return self._converters[source]


def _self_contained(row: OriginalRow, layout: Layout) -> OriginalRow:
    """A row that can be read without the mapping of its source: as it is, or as messages if it needs the mapping."""
    if layout.is_empty():
        return row
    options: dict[str, Any] = {"numbers": [row.number]}
    absent = dict.fromkeys((layout.columns or {}).values())  # columns that other rows of the source have
    (sample,) = convert_rows([absent | dict(row.value)], row.where, layout=layout, **options)
    with suppress(DataError):  # it needs the mapping, then
        if convert_rows([row.value], row.where, layout=Layout(), **options) == [sample]:
            return row
    return OriginalRow(row.where, row.number, as_row(sample, row.value), None)
