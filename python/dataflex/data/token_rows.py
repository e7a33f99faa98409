"""Tokenised rows as flat arrays, in memory or memory-mapped: no Python object a row or a token.

============ ======== ==========================================================
array        dtype    content
============ ======== ==========================================================
input_ids    int32    ids of all rows, one after the other
offsets      int64    (n + 1,) where each row starts
learnt       uint8    a bit a token, 1 where it carries loss: its label is its id
counts       int32    (n,) labels that something predicts
truncated    bool     (n,) tokens were cut
note_rows    int64    rows that something stands out in
note_kinds   int32    what, a position in ``notes``
============ ======== ==========================================================

A row of 234 tokens takes 936 bytes of ids and 47 of the others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.data.encoding import IGNORE_INDEX, Encoded


@dataclass(frozen=True)
class TokenRows:
    """N tokenised rows; see the module for the arrays.

    Attributes:
        notes: What stands out in rows (:mod:`dataflex.data.notes`), each text once.
    """

    input_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    learnt: NDArray[np.uint8]
    counts: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    note_rows: NDArray[np.int64]
    note_kinds: NDArray[np.int32]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.counts)

    @cached_property
    def id_bounds(self) -> tuple[int, int]:
        """Least and greatest token id; labels are ids too."""
        if not len(self.input_ids):
            return 0, 0
        return int(self.input_ids.min()), int(self.input_ids.max())

    def lengths(self) -> NDArray[np.int64]:
        """``(n,)`` int64: tokens of each row."""
        return np.diff(self.offsets)

    def ids(self, row: int) -> list[int]:
        """The t ids of a row."""
        found: list[int] = self.input_ids[self.offsets[row] : self.offsets[row + 1]].tolist()
        return found

    def labels(self, row: int) -> list[int]:
        """The t labels of a row: ids where it carries loss, else -100."""
        start, stop = int(self.offsets[row]), int(self.offsets[row + 1])
        bits = np.unpackbits(self.learnt[start // 8 : -(-stop // 8)], bitorder="little")
        learnt = bits[start % 8 : start % 8 + stop - start].view(np.bool_)
        found: list[int] = np.where(learnt, self.input_ids[start:stop], IGNORE_INDEX).tolist()
        return found

    def notes_of(self, row: int) -> tuple[str, ...]:
        """What stands out in a row."""
        first, last = np.searchsorted(self.note_rows, [row, row + 1])
        return tuple(self.notes[kind] for kind in self.note_kinds[first:last].tolist())

    def count_notes(self, rows: NDArray[np.int64] | None = None) -> dict[str, int]:
        """How many of some rows, or of all, have each note, the most frequent first."""
        if not len(self.note_rows):
            return {}
        noted = range(len(self)) if rows is None else rows.tolist()
        some = set(self.note_rows.tolist())
        return dict(Counter(note for row in noted if row in some for note in self.notes_of(row)).most_common())


@dataclass
class TokenPart:
    """Some tokenised rows on their way into the arrays.

    Attributes:
        input_ids: ``(t,)`` int32 ids of all of them.
        lengths: Tokens of each.
        learnt: ``(t,)`` bool.
        counts: Labels of each that something predicts.
        truncated: Tokens of it were cut, of each.
        notes: Positions of the rows with notes, and these.
    """

    input_ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    learnt: NDArray[np.bool_]
    counts: NDArray[np.int32]
    truncated: NDArray[np.bool_]
    notes: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> TokenPart:
        """Pack rows."""
        lengths = np.array([len(row.ids) for row in rows], dtype=np.int64)
        input_ids = np.frombuffer(b"".join(row.ids for row in rows), dtype=np.int32)
        starts = np.cumsum(lengths) - lengths
        learnt = np.zeros(len(input_ids), dtype=np.bool_)
        for place, row in zip(starts.tolist(), rows, strict=True):
            for start, end in row.learnt:
                learnt[place + start : place + end] = True
        totals = np.concatenate([[0], np.cumsum(learnt)])
        first = learnt[np.minimum(starts, max(len(learnt) - 1, 0))] & (lengths > 0) if len(learnt) else lengths > 0
        counts = totals[starts + lengths] - totals[starts] - first  # nothing predicts the first token
        return cls(
            input_ids,
            lengths,
            learnt,
            counts.astype(np.int32),
            np.array([row.truncated for row in rows], dtype=np.bool_),
            [(place, row.notes) for place, row in enumerate(rows) if row.notes],
        )

    def labels(self) -> NDArray[np.int32]:
        """``(t,)`` int32."""
        return np.where(self.learnt, self.input_ids, np.int32(IGNORE_INDEX))


class Notes:
    """Numbers notes in the order in which they are met.

    Attributes:
        names: Each note once.
        rows: Rows that have notes; a row with several stands there several times.
        kinds: Number of the note of each of these.
    """

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.rows: list[int] = []
        self.kinds: list[int] = []

    def add(self, part: TokenPart, start: int) -> None:
        """Add those of a part whose first row is row ``start``."""
        for place, notes in part.notes:
            for note in notes:
                self.rows.append(start + place)
                self.kinds.append(self.names.setdefault(note, len(self.names)))


def joined(parts: Iterable[TokenPart]) -> TokenRows:
    """All parts as arrays in memory."""
    found, notes, total = list(parts), Notes(), 0
    for part in found:
        notes.add(part, total)
        total += len(part.lengths)
    lengths = _joined(found, "lengths", np.int64)
    return TokenRows(
        input_ids=_joined(found, "input_ids", np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        learnt=np.packbits(_joined(found, "learnt", np.bool_), bitorder="little"),
        counts=_joined(found, "counts", np.int32),
        truncated=_joined(found, "truncated", np.bool_),
        note_rows=np.array(notes.rows, dtype=np.int64),
        note_kinds=np.array(notes.kinds, dtype=np.int32),
        notes=tuple(notes.names),
    )


def _joined(parts: Sequence[TokenPart], name: str, dtype: type[np.generic]) -> NDArray[Any]:
    return np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0, dtype=dtype)


def fingerprint_bytes(ids: NDArray[np.integer], labels: NDArray[np.integer], lengths: Iterable[int]) -> Iterator[bytes]:
    """What a dataset's fingerprint is taken over: of each row its length, its ids and its labels, int64.

    Args:
        ids: ``(t,)`` of all rows.
        labels: ``(t,)`` of all rows.
        lengths: Tokens of each row.
    """
    start = 0
    wide = np.stack([ids, labels]).astype("<i8")  # (2, t)
    for length in lengths:
        yield int(length).to_bytes(8, "little") + wide[:, start : start + length].tobytes()
        start += length
