"""Feature store: rows of projected features, or of exact sums, in shards that survive a kill.

A folder holds ``manifest.json`` (fingerprint, number of rows, dimension, rows a shard, type of the values) and one file
``features-START-STOP.safetensors`` (or ``scores-...``) a shard, written aside, fsynced and renamed. The plan of shards
depends on the number of rows alone, never on who computes them. Each shard carries its rows, the CRC-32 of its values
and the fingerprint's SHA-256 in its metadata: one that is torn, altered, foreign or in another's place counts as
missing and is computed again. (The checksum is against accidents: it finds every change of up to 32 neighbouring bits,
and it is ten times as fast as SHA-256, which would take longer than the scores.) Rows are read memory-mapped, a bounded
block at a time, however large the shards are.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dataflex.errors import StoreError
from dataflex.utils.files import atomic_path, differences, write_json

logger = logging.getLogger(__name__)

FORMAT_VERSION = 3
"""3: a shard's seal names its rows. Stores of other versions are computed again, which is said."""
MANIFEST = "manifest.json"
SEAL = "dataflex"
BLOCK_VALUES = 1 << 18
"""Values (rows x k) that are read at once: 2 MiB once they are float64. Scores of 20,000 rows (k = 4096) took 0.7 s of
processor time, and 1.2 s in blocks of half and of four times the size, which leave the processor's caches."""
LARGEST_LOSS = 0.01
"""Largest relative change of a row by rounding; bfloat16 stays below 0.004, float16 overflows and underflows."""
_CHUNK = 1 << 20

FeatureDtype = Literal["float32", "bfloat16", "float16"]
StoreDtype = FeatureDtype | Literal["float64"]
DTYPES: dict[StoreDtype, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

Shard = tuple[int, int]
"""First row and the row after the last."""


class FeatureStore:
    """n rows of k features on disk.

    Args:
        path: Folder of the store.
        fingerprint: JSON-able facts that fix the values (model state, data, projection, ...).
        num_rows: n.
        dim: k.
        shard_rows: Rows a shard.
        dtype: Type of the values on disk; 16 bits halve the store, with a relative rounding error of 0.2 %
            (bfloat16) or 0.02 % (float16, which cannot hold every magnitude).
    """

    what: ClassVar[str] = "features"
    """What the rows are, in file names and messages."""

    def __init__(
        self,
        path: Path,
        fingerprint: Mapping[str, Any],
        num_rows: int,
        dim: int,
        shard_rows: int,
        dtype: StoreDtype = "float32",
    ) -> None:
        if shard_rows < 1:
            raise StoreError(f"a shard needs at least one row, got shard_rows={shard_rows}")
        self.path = path
        self.num_rows = num_rows
        self.dim = dim
        self.shard_rows = shard_rows
        self.dtype = DTYPES[dtype]
        facts = {"format": FORMAT_VERSION, "num_rows": num_rows, "dim": dim, "shard_rows": shard_rows, "dtype": dtype}
        text = json.dumps({**facts, "fingerprint": dict(fingerprint)}, sort_keys=True)
        self._manifest: dict[str, Any] = json.loads(text)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        self._verified: dict[Shard, tuple[int, int, int]] = {}
        self._open()

    @property
    def shards(self) -> list[Shard]:
        """The plan: (start, stop) rows of every shard."""
        starts = range(0, self.num_rows, self.shard_rows)
        return [(start, min(start + self.shard_rows, self.num_rows)) for start in starts]

    @property
    def num_bytes(self) -> int:
        """Bytes of all values."""
        return self.num_rows * self.dim * self.dtype.itemsize

    def missing(self) -> list[Shard]:
        """Shards that are not on disk in full; damaged ones are removed and reported."""
        return [shard for shard in self.shards if not self._intact(shard)]

    def write(self, start: int, features: Tensor) -> None:
        """Write one shard.

        Args:
            start: First row, the start of a planned shard.
            features: ``(rows, k)`` floating point; rows that are not finite stay so.

        Raises:
            StoreError: The rows are not a planned shard, have another dimension, or do not fit the store's type.
        """
        shard = (start, start + len(features))
        if not self._planned(shard) or features.shape[1] != self.dim:
            raise StoreError(
                f"rows {start}:{shard[1]} with {features.shape[1]} {self.what} are no shard of this store "
                f"({self.num_rows} rows, {self.dim} {self.what}, {self.shard_rows} rows a shard)"
            )
        values = features.to(device="cpu", dtype=self.dtype).contiguous()
        self._check_rounding(start, features.to("cpu"), values)
        checksum = zlib.crc32(values.view(torch.uint8).numpy().data)
        file = self._file(shard)
        with atomic_path(file) as temporary:
            # One entry: safetensors writes several in an order that changes from run to run.
            seal = json.dumps({"crc32": checksum, "rows": shard, "store": self._digest})
            save_file({self.what: values}, temporary, metadata={SEAL: seal})
        self._verified[shard] = _signature(file)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, ``(rows, k)`` in the store's type) of all rows in order, a bounded number at a time.

        The blocks depend on the plan alone. A shard is verified before its first row is handed out.

        Raises:
            StoreError: A shard is missing or damaged.
        """
        for shard in self.shards:
            yield from self.blocks_of(shard)

    def blocks_of(self, shard: Shard) -> Iterator[tuple[int, Tensor]]:
        """The :meth:`blocks` of one shard.

        Raises:
            StoreError: It is missing or damaged.
        """
        problem = self._problem(shard)
        if problem:
            raise StoreError(f"{self._file(shard)} {problem}", hint=f"compute the {self.what} again")
        most = max(1, BLOCK_VALUES // self.dim)
        for start in range(*shard, most):
            yield start, self._rows(shard, start, min(start + most, shard[1]))

    def load(self) -> Tensor:
        """All rows, ``(n, k)`` float32, or float64 if that is what is stored."""
        values = torch.zeros((self.num_rows, self.dim), dtype=torch.promote_types(self.dtype, torch.float32))
        for start, rows in self.blocks():
            values[start : start + len(rows)] = rows
        return values

    def remove(self) -> None:
        """Delete the store."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _planned(self, shard: Shard) -> bool:
        """Whether these rows are a shard; computed, for a list of all shards grows with the store."""
        start, stop = shard
        if not 0 <= start < self.num_rows or start % self.shard_rows:
            return False
        return stop == min(start + self.shard_rows, self.num_rows)

    def _open(self) -> None:
        file = self.path / MANIFEST
        if file.exists():
            different = differences(_read_json(file), self._manifest)
            if not different:
                return
            logger.warning(
                "%s in %s belong to another run (%s); computing them again", self.what, self.path, "; ".join(different)
            )
            self.remove()
        write_json(file, self._manifest)

    def _intact(self, shard: Shard) -> bool:
        file = self._file(shard)
        if not file.exists():
            return False
        problem = self._problem(shard)
        if problem is None:
            return True
        logger.warning("%s is damaged: it %s; rows %d to %d are computed again", file, problem, shard[0], shard[1] - 1)
        file.unlink(missing_ok=True)
        return False

    def _problem(self, shard: Shard) -> str | None:
        """What is wrong with a shard's file, or None; one that was verified and not touched since is not read again."""
        file = self._file(shard)
        if not file.exists():
            return "is missing"
        if self._verified.get(shard) == _signature(file):
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                seal = json.loads((opened.metadata() or {})[SEAL])
                values = opened.get_slice(self.what)
                shape, dtype = values.get_shape(), values[:0].dtype
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            return f"cannot be read ({type(error).__name__}: {error})"
        if not isinstance(seal, dict) or seal.get("store") != self._digest:
            return "belongs to another store"
        if seal.get("rows") != list(shard):
            return f"holds other rows: {seal.get('rows')}"
        rows = shard[1] - shard[0]
        if shape != [rows, self.dim] or dtype != self.dtype:
            return f"holds {dtype} {tuple(shape)}, expected {self.dtype} {(rows, self.dim)}"
        if seal.get("crc32") != _checksum(file):
            return "holds values that do not match their checksum"
        self._verified[shard] = _signature(file)
        return None

    def _rows(self, shard: Shard, start: int, stop: int) -> Tensor:
        # Opened for each block: pages of a mapping that stays open would count as this process's memory.
        with safe_open(self._file(shard), framework="pt") as opened:
            rows: Tensor = opened.get_slice(self.what)[start - shard[0] : stop - shard[0]]
        return rows

    def _check_rounding(self, start: int, exact: Tensor, stored: Tensor) -> None:
        """Refuse rows that the store's type cannot hold."""
        if exact.dtype == self.dtype:
            return
        finite = exact.isfinite().all(dim=1)
        wide = exact.double()  # in float32 the squares of 1e30 and 1e-23 are inf and 0, and any difference would do
        difference = torch.linalg.vector_norm(wide - stored.double(), dim=1)
        # A difference that is not finite is an overflow.
        lost = finite & ~(difference <= LARGEST_LOSS * torch.linalg.vector_norm(wide, dim=1))
        if lost.any():
            row = start + int(lost.nonzero()[0])
            raise StoreError(
                f"{int(lost.sum())} rows from row {row} on do not fit {str(self.dtype).removeprefix('torch.')}: "
                f"rounding changes them by more than {LARGEST_LOSS:.0%}",
                hint="use features_dtype: bfloat16 or float32",
            )

    def _file(self, shard: Shard) -> Path:
        return self.path / f"{self.what}-{shard[0]:08d}-{shard[1]:08d}.safetensors"


class ScoreStore(FeatureStore):
    """n rows of exact sums, of which scores are made, as :class:`FeatureStore`; 8 k bytes a row.

    Args:
        path: Folder of the store.
        fingerprint: JSON-able facts that fix the values.
        num_rows: n.
        dim: k.
        shard_rows: Rows a shard.
    """

    what = "scores"

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], num_rows: int, dim: int, shard_rows: int) -> None:
        super().__init__(path, fingerprint, num_rows, dim, shard_rows, "float64")


def _signature(file: Path) -> tuple[int, int, int]:
    """Changes when the file is written or replaced."""
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _checksum(file: Path) -> int:
    """CRC-32 of the values of a safetensors file with one entry: what follows the header."""
    found = 0
    with file.open("rb") as opened:
        opened.seek(int.from_bytes(opened.read(8), "little"), 1)
        while chunk := opened.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
