"""Reading back what wandb and swanlab write offline: framed records, as in LevelDB's log, after a head of 7 bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

BLOCK = 32768
FRAME = struct.Struct("<IHB")  # checksum, length, kind
COMPLETE = (1, 4)  # whole in one frame, or its last one


def records(path: Path) -> Iterator[bytes]:
    """The records of a file, in their order."""
    data = path.read_bytes()
    place, record = FRAME.size, b""
    while place + FRAME.size <= len(data):
        if BLOCK - place % BLOCK < FRAME.size:  # the rest of a block that no frame fits into
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = FRAME.unpack_from(data, place)
        place += FRAME.size
        record += data[place : place + length]
        place += length
        if kind in COMPLETE:
            yield record
            record = b""
