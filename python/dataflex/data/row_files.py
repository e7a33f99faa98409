"""Rows of a source that are read when they are asked for, and only those.

A JSON Lines file is gone through once for the places of its lines (8 bytes a row are kept); Parquet is read by row
group; a ``datasets.Dataset`` is memory-mapped. A JSON file is one value and has to be read whole.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dataflex.data.readers import READERS, arrow_rows, check_file, chosen_files, json_line, read_rows
from dataflex.errors import DataError
from dataflex.utils.foreign import FILES, arrow_errors, foreign

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_HASHED_ROWS = 1000


class Digest(Protocol):
    """Takes bytes, as the objects of hashlib do."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""


class SourceRows(ABC):
    """The rows of one source by their numbers, from 0."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def take(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        """The rows with these numbers, in that order.

        Raises:
            DataError: They cannot be read.
        """

    def text(self, number: int) -> str | None:
        """The row's own JSON, where it comes from a JSON Lines file."""
        del number
        return None

    @abstractmethod
    def digest(self, into: Digest) -> None:
        """Add all that the rows depend on; rows that differ give other bytes.

        Raises:
            DataError: It cannot be read, or holds values that have no bytes of their own.
        """


class ListedRows(SourceRows):
    """Rows that are in memory."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        """See the base class."""
        return [self._rows[number] for number in numbers]

    def digest(self, into: Digest) -> None:
        """See the base class; a value's bytes are those of ``repr`` for what JSON has."""
        for row in self._rows:
            _check_plain(row)
            into.update(repr(row).encode("utf-8", "surrogatepass"))


class _File(SourceRows):
    """Rows of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def digest(self, into: Digest) -> None:
        """See the base class: the file's suffix and bytes."""
        into.update(self.path.suffix.encode())
        with foreign(DataError, f"cannot read {self.path}", FILES), self.path.open("rb", buffering=0) as file:
            whole = hashlib.file_digest(file, "sha256")  # its own digest first: where it ends shall be clear
        into.update(whole.digest())


class JsonFile(_File):
    """A JSON list."""

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return read_rows(self.path)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        """See the base class."""
        return [self._rows[number] for number in numbers]


class LinesFile(_File):
    """A JSON Lines file."""

    @cached_property
    def _starts(self) -> array[int]:
        """Where each line with a row starts."""
        starts, place = array("q"), 0
        with foreign(DataError, f"cannot read {self.path}", FILES), self.path.open("rb") as file:
            for line in file:
                if not _is_blank(line):
                    starts.append(place)
                place += len(line)
        if not starts:
            raise DataError(f"{self.path}: there are no rows")
        return starts

    def __len__(self) -> int:
        return len(self._starts)

    def take(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        """See the base class; if one of them is no object, all such lines of the file are reported."""
        rows: list[Mapping[str, Any]] = []
        for line in self._lines(numbers):
            row = json_line(line)
            if row is None:
                read_rows(self.path)  # goes through the whole file, and says what is wrong with which line
                raise DataError(f"{self.path} was changed while it was read")
            rows.append(row)
        return rows

    def text(self, number: int) -> str | None:
        """See the base class."""
        (line,) = self._lines([number])
        return line.decode().strip()

    def _lines(self, numbers: Sequence[int]) -> Iterator[bytes]:
        with foreign(DataError, f"cannot read {self.path}", FILES), self.path.open("rb") as file:
            last = -2
            for number in numbers:
                if number != last + 1 or file.tell() != self._starts[number]:
                    file.seek(self._starts[number])
                last = number
                line = file.readline()
                yield line if self._starts[number] else line.removeprefix(_BOM)


class ParquetFile(_File):
    """A Parquet file; the row group that was read last is kept."""

    @cached_property
    def _ends(self) -> list[int]:
        import pyarrow.parquet as pq

        with foreign(DataError, f"{self.path}: not a readable Parquet file", arrow_errors()):
            found = pq.read_metadata(self.path)
            ends = list(accumulate(found.row_group(group).num_rows for group in range(found.num_row_groups)))
        if not ends or not ends[-1]:
            raise DataError(f"{self.path}: there are no rows")
        return ends

    def __len__(self) -> int:
        return self._ends[-1]

    def take(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        """See the base class."""
        rows: list[Mapping[str, Any]] = []
        with foreign(DataError, f"{self.path}: not a readable Parquet file", arrow_errors()):
            for group, members in groupby(numbers, key=lambda number: bisect_right(self._ends, number)):
                start = self._ends[group - 1] if group else 0
                rows += arrow_rows(self._group(group).take([number - start for number in members]).to_pylist())
        return rows

    def _group(self, group: int) -> Any:
        import pyarrow.parquet as pq

        if self.__dict__.get("_kept", (None, None))[0] != group:
            with pq.ParquetFile(self.path) as file:
                self._kept = group, file.read_row_group(group, use_threads=False)
        return self._kept[1]


class ArrowRows(SourceRows):
    """The rows of a ``datasets.Dataset``."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def take(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        """See the base class."""
        return list(arrow_rows(self._dataset.select(numbers).with_format(None).to_list()))

    def digest(self, into: Digest) -> None:
        """See the base class: types and values, whatever the chunks of the table."""
        import pyarrow as pa

        into.update(repr(self._dataset.features).encode())
        for table in self._dataset.with_format("arrow").iter(_HASHED_ROWS):
            whole = table.combine_chunks()
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, whole.schema) as stream:
                stream.write_table(whole)
            into.update(sink.getvalue())


class JoinedRows(SourceRows):
    """Several sources one after the other, numbered through."""

    def __init__(self, parts: Sequence[SourceRows]) -> None:
        self._parts = parts

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def take(self, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
        """See the base class."""
        rows: list[Mapping[str, Any]] = []
        for place, members in groupby(numbers, key=lambda number: bisect_right(self._ends, number)):
            rows += self._parts[place].take([number - self._start(place) for number in members])
        return rows

    def text(self, number: int) -> str | None:
        """See the base class; only where all parts are JSON Lines files."""
        if not all(isinstance(part, LinesFile) for part in self._parts):
            return None
        place = bisect_right(self._ends, number)
        return self._parts[place].text(number - self._start(place))

    def digest(self, into: Digest) -> None:
        """See the base class."""
        for part in self._parts:
            part.digest(into)

    def _start(self, place: int) -> int:
        return self._ends[place - 1] if place else 0


_FILES: dict[str, type[_File]] = {".json": JsonFile, ".jsonl": LinesFile, ".parquet": ParquetFile}
assert _FILES.keys() == READERS.keys()


def file_rows(path: Path, split: str = "train") -> SourceRows:
    """The rows of a file, or of the data files of a folder in the order of their names.

    Args:
        path: The file or folder.
        split: Of a folder whose files are named after splits, those of this one are read.

    Raises:
        DataError: Another kind of file, or a folder whose files are of several splits, none of them this one, or of
            none. What is wrong with rows shows when they are read.
    """
    if path.is_dir():
        return JoinedRows([file_rows(file) for file in chosen_files(path, split)])
    check_file(path)
    return _FILES[path.suffix](path)


def _is_blank(line: bytes) -> bool:
    """Whether a line has no character but white space; ``bytes`` knows less white space than text does."""
    left = line.removeprefix(_BOM).strip()
    if not left:
        return True
    unusual = left[0] >= 0x80 or 0x1C <= left[0] <= 0x1F
    return unusual and not left.decode("utf-8", "replace").strip()


def _check_plain(value: Any) -> None:
    """Refuse what ``repr`` might not show in full: objects of other kinds (arrays are shortened)."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(key)
            _check_plain(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_plain(item)
    elif value is not None and type(value) not in (str, bool, int, float):
        raise DataError(f"a value of the type {type(value).__name__} has no bytes of its own")
