"""The rows of a shard in the making, so that a kill does not cost the shard.

A journal is a file to which rows are appended, a record at a time: number of rows and CRC-32 of their values, then the
values. It is not fsynced. What a process has written survives the process, whatever kills it; if the machine itself
goes down, the system may lose records, which the checksums tell, and at most the rows of one shard a process are
computed again. When the shard is complete, it is written, fsynced and renamed, and the journal goes.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_RECORD = struct.Struct("<II")
"""Rows of a record, CRC-32 of their values."""


class Journal:
    """Rows that were written down.

    Args:
        file: Where they are.
        seal: Begins the file; one that begins otherwise belongs to another store.
        width: Bytes of a row.
    """

    def __init__(self, file: Path, seal: bytes, width: int) -> None:
        self._file = file
        self._seal = seal
        self._width = width

    def read(self) -> bytearray:
        """The values of the rows that are intact; whatever comes after them is cut off."""
        found = bytearray()
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            return found
        at = len(self._seal)
        if data[:at] != self._seal:
            self.remove()
            return found
        while at + _RECORD.size <= len(data):
            rows, checksum = _RECORD.unpack_from(data, at)
            values = data[at + _RECORD.size : at + _RECORD.size + rows * self._width]
            if not rows or len(values) < rows * self._width or zlib.crc32(values) != checksum:
                break
            found += values
            at += _RECORD.size + len(values)
        if at < len(data):
            with self._file.open("r+b") as file:
                file.truncate(at)
        return found

    def append(self, values: NDArray[np.uint8]) -> None:
        """Write the bytes of rows down, of which there is at least one."""
        data = values.tobytes()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("ab") as file:
            head = b"" if file.tell() else self._seal
            file.write(head + _RECORD.pack(len(data) // self._width, zlib.crc32(data)))
            file.write(data)

    def remove(self) -> None:
        """Forget all of them."""
        self._file.unlink(missing_ok=True)
