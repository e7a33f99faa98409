"""Tokenised rows and their samples in a folder, written once and read memory-mapped.

Besides the arrays of :class:`dataflex.data.token_rows.TokenRows` a folder holds the samples as text
(:mod:`dataflex.data.sample_text`), their row numbers, ids and sources, each an ``.npy`` file, and ``rows.json``. The
processes of a machine share the pages of these files; a process has a few bytes a row of its own at most.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from dataflex.data.rows import unique_ids
from dataflex.data.sample_text import metadata_text, read_metadata, read_turns, turns_text
from dataflex.data.token_rows import Notes, TokenPart, TokenRows, fingerprint_bytes
from dataflex.types import Sample
from dataflex.utils.files import write_json

FORMAT = 1
FACTS = "rows.json"
_ARRAYS: dict[str, Any] = {
    **{"input_ids": np.int32, "offsets": np.int64, "learnt": np.uint8, "counts": np.int32, "truncated": np.bool_},
    **{"note_rows": np.int64, "note_kinds": np.int32},
    **{"rows": np.int64, "sources": np.int16},
    **dict.fromkeys(("turns", "metadata", "ids"), np.uint8),
    **{f"{name}_at": np.int64 for name in ("turns", "metadata", "ids")},
}
"""Names and types of the arrays; ``NAME_at`` is where each text of ``NAME`` starts, (n + 1,)."""


_HEADER = 128
"""Bytes of the header of an ``.npy`` file with one dimension."""


@dataclass
class StoredPart:
    """Some samples on their way into a folder: tokens, and texts one after the other with their lengths in bytes."""

    tokens: TokenPart
    rows: list[int]
    ids: list[str]
    source: str
    turns: list[bytes]
    metadata: list[bytes]

    @classmethod
    def of(cls, samples: Sequence[Sample], tokens: TokenPart, source: str) -> StoredPart:
        """Pack samples of one source.

        Raises:
            NotStorableError: One of them would not come back as it is.
        """
        return cls(
            tokens,
            [sample.row for sample in samples],
            [sample.id for sample in samples],
            source,
            [turns_text(sample) for sample in samples],
            [metadata_text(sample) for sample in samples],
        )


class _ArrayFile:
    """An ``.npy`` file that grows; its header has room for the length, which is written last."""

    def __init__(self, path: Path, dtype: Any) -> None:
        self._dtype = np.dtype(dtype)
        self._file = path.open("wb")
        self.length = 0
        self._header()

    def _header(self) -> None:
        self._file.seek(0)
        facts = {"descr": npy.dtype_to_descr(self._dtype), "fortran_order": False, "shape": (self.length,)}
        npy.write_array_header_1_0(self._file, facts)

    def add(self, values: Any) -> None:
        """Append values."""
        found = np.asarray(values, dtype=self._dtype)
        self._file.write(found.tobytes())
        self.length += len(found)

    def close(self) -> None:
        """Write the length."""
        self._header()
        self._file.close()


class RowWriter:
    """Writes a folder; with it as a context, files are complete when the block ends.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays = {name: _ArrayFile(folder / f"{name}.npy", kind) for name, kind in _ARRAYS.items()}
        for name in ("offsets", "turns_at", "metadata_at", "ids_at"):
            self._arrays[name].add([0])
        self._ends = dict.fromkeys(("offsets", "turns_at", "metadata_at", "ids_at"), 0)
        self._bits = np.zeros(0, dtype=np.bool_)
        self._notes = Notes()
        self._sources: dict[str, int] = {}
        self._seen = array("q")
        self._digests = {"all": hashlib.sha256()}  # and "labelled", from the first row without a label on
        self._bounds: list[int] = []

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        for file in self._arrays.values():
            file.close()
        if kind is None and len(np.unique(np.asarray(self._seen))) < len(self._seen):
            _make_ids_unique(self._folder)

    def add(self, part: StoredPart) -> None:
        """Append samples."""
        tokens = part.tokens
        self._notes.add(tokens, self._arrays["counts"].length)
        for name in ("input_ids", "counts", "truncated"):
            self._arrays[name].add(getattr(tokens, name))
        self._add_ends("offsets", tokens.lengths)
        self._add_bits(tokens.learnt, last=False)
        self._arrays["rows"].add(part.rows)
        self._arrays["sources"].add([self._sources.setdefault(part.source, len(self._sources))] * len(part.rows))
        for name, texts in (("turns", part.turns), ("metadata", part.metadata), ("ids", _encoded(part.ids))):
            self._arrays[name].add(np.frombuffer(b"".join(texts), dtype=np.uint8))
            self._add_ends(f"{name}_at", np.array([len(text) for text in texts], dtype=np.int64))
        self._seen.extend(map(hash, part.ids))
        self._add_digests(tokens)
        if len(tokens.input_ids):
            self._bounds = [int(tokens.input_ids.min()), int(tokens.input_ids.max()), *self._bounds]
            self._bounds = [min(self._bounds), max(self._bounds)]

    def _add_ends(self, name: str, lengths: NDArray[np.int64]) -> None:
        ends = self._ends[name] + np.cumsum(lengths)
        self._arrays[name].add(ends)
        if len(ends):
            self._ends[name] = int(ends[-1])

    def _add_bits(self, learnt: NDArray[np.bool_], *, last: bool) -> None:
        bits = np.concatenate([self._bits, learnt])
        whole = len(bits) if last else len(bits) // 8 * 8
        self._arrays["learnt"].add(np.packbits(bits[:whole], bitorder="little"))
        self._bits = bits[whole:]

    def _add_digests(self, tokens: TokenPart) -> None:
        texts = fingerprint_bytes(tokens.input_ids, tokens.labels(), tokens.lengths.tolist())
        if "labelled" not in self._digests and not tokens.counts.all():
            self._digests["labelled"] = self._digests["all"].copy()
        for text, count in zip(texts, tokens.counts.tolist(), strict=True):
            for name, digest in self._digests.items():
                if count or name == "all":
                    digest.update(text)

    def _finish(self) -> None:
        self._add_bits(self._bits[:0], last=True)
        self._arrays["note_rows"].add(self._notes.rows)
        self._arrays["note_kinds"].add(self._notes.kinds)
        facts = {
            "format": FORMAT,
            "lengths": {name: file.length for name, file in self._arrays.items()},
            "id_bounds": self._bounds or [0, 0],
            "sources": list(self._sources),
            "notes": list(self._notes.names),
            "fingerprints": {
                name: self._digests.get(name, self._digests["all"]).hexdigest() for name in ("all", "labelled")
            },
        }
        write_json(self._folder / FACTS, facts)


def _encoded(texts: Sequence[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def _make_ids_unique(folder: Path) -> None:
    """Write the ids again: some occur, or may occur, more than once."""
    ids = _Texts.open(folder, "ids")
    samples = unique_ids([Sample(ids[place].decode(), place, ()) for place in range(len(ids))])
    texts = _encoded([sample.id for sample in samples])
    ends = [0, *np.cumsum([*map(len, texts)]).tolist()]
    for name, values in (("ids", np.frombuffer(b"".join(texts), np.uint8)), ("ids_at", ends)):
        file = _ArrayFile(folder / f"{name}.npy", _ARRAYS[name])
        file.add(values)
        file.close()
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    facts["lengths"]["ids"] = ends[-1]
    write_json(folder / FACTS, facts)


@dataclass(frozen=True)
class _Texts:
    """Texts one after the other; ``at`` has their places."""

    values: NDArray[np.uint8]
    at: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path, name: str) -> _Texts:
        return cls(_open(folder, name), _open(folder, f"{name}_at"))

    def __len__(self) -> int:
        return len(self.at) - 1

    def __getitem__(self, place: int) -> bytes:
        found: bytes = self.values[self.at[place] : self.at[place + 1]].tobytes()
        return found


def _open(folder: Path, name: str) -> NDArray[Any]:
    path = folder / f"{name}.npy"
    if path.stat().st_size <= _HEADER:  # nothing to map
        return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


class StoredSamples(Sequence[Sample]):
    """The samples of a folder, each read when it is asked for.

    Args:
        folder: The folder.
        facts: What its ``rows.json`` holds.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self._turns = _Texts.open(folder, "turns")
        self._metadata = _Texts.open(folder, "metadata")
        self._ids = _Texts.open(folder, "ids")
        self._sources = _open(folder, "sources")
        self._names: list[str] = facts["sources"]
        self.rows: NDArray[np.int64] = _open(folder, "rows")

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        messages, tools = read_turns(self._turns[place])
        return Sample(self.id(place), int(self.rows[place]), messages, tools, self.metadata(place), self.source(place))

    def __iter__(self) -> Iterator[Sample]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(Sample.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def id(self, place: int) -> str:
        """``Sample.id``."""
        return self._ids[place].decode()

    def source(self, place: int) -> str:
        """``Sample.source``."""
        name: str = self._names[self._sources[place]]
        return name

    def metadata(self, place: int) -> dict[str, Any]:
        """``Sample.metadata``."""
        return read_metadata(self._metadata[place])


class RowStore:
    """A folder that :class:`RowWriter` wrote.

    Args:
        folder: The folder.

    Raises:
        OSError, ValueError, LookupError, TypeError: It does not exist, or is not whole.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}")
        names = ("input_ids", "offsets", "learnt", "counts", "truncated", "note_rows", "note_kinds")
        arrays: dict[str, Any] = {name: _open(folder, name) for name in names}
        self.tokens = TokenRows(**arrays, notes=tuple(facts["notes"]))
        self.tokens.__dict__["id_bounds"] = tuple(facts["id_bounds"])  # not from the ids: they would all be read
        self.samples = StoredSamples(folder, facts)
        self.fingerprints: dict[str, str] = facts["fingerprints"]
        for name, length in facts["lengths"].items():
            if len(_open(folder, name)) != length:
                raise ValueError(f"{name} is not whole")

    @cached_property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.stat().st_size for file in self.folder.iterdir())
