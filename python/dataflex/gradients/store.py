"""Feature store: rows of projected features, or of exact sums, in shards that survive a kill.

A folder holds ``manifest.json`` (fingerprint, layout, dimension, type of the values) and one file
``features-START-STOP.safetensors`` (or ``scores-...``) a shard, written aside, fsynced and renamed. Where a row lies is
the layout's affair (:mod:`dataflex.gradients.layout`), which never depends on who computes it. Each shard carries its
places, the CRC-32 of its values and the fingerprint's SHA-256 in its metadata: one that is torn, altered, foreign or in
another's place counts as missing and is computed again. (The checksum is against accidents: it finds every change of up
to 32 neighbouring bits, and it is ten times as fast as SHA-256, which would take longer than the scores.) Rows are read
memory-mapped, a bounded block at a time, however large the shards are.

The rows of a shard in the making are kept in a journal beside it (:mod:`dataflex.gradients.journal`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dataflex.errors import StoreError
from dataflex.gradients.journal import Journal
from dataflex.gradients.layout import Layout, Shard
from dataflex.utils.files import atomic_path, differences, write_json

logger = logging.getLogger(__name__)

FORMAT_VERSION = 4
"""4: rows lie where a layout says. Stores of other versions are computed again, which is said."""
MANIFEST = "manifest.json"
SEAL = "dataflex"
BLOCK_VALUES = 1 << 18
"""Values (rows x k) that are read at once: 2 MiB once they are float64. Scores of 20,000 rows (k = 4096) took 0.7 s of
processor time, and 1.2 s in blocks of half and of four times the size, which leave the processor's caches."""
GATHERED_BLOCKS = 8
"""Blocks whose rows are looked up together: they lie in many shards, each of which is opened once for all of them."""
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


class FeatureStore:
    """n rows of k features on disk.

    Args:
        path: Folder of the store.
        fingerprint: JSON-able facts that fix the values (model state, data, projection, ...).
        layout: Where the n rows lie.
        dim: k.
        dtype: Type of the values on disk; 16 bits halve the store, with a relative rounding error of 0.2 %
            (bfloat16) or 0.02 % (float16, which cannot hold every magnitude).
    """

    what: ClassVar[str] = "features"
    """What the rows are, in file names and messages."""

    def __init__(
        self,
        path: Path,
        fingerprint: Mapping[str, Any],
        layout: Layout,
        dim: int,
        dtype: StoreDtype = "float32",
    ) -> None:
        self.path = path
        self.layout = layout
        self.num_rows = len(layout)
        self.dim = dim
        self.dtype = DTYPES[dtype]
        self.shards: list[Shard] = list(pairwise(layout.shards.tolist()))
        facts = {"format": FORMAT_VERSION, "num_rows": len(layout), "dim": dim, "dtype": dtype, "layout": layout.digest}
        text = json.dumps({**facts, "fingerprint": dict(fingerprint)}, sort_keys=True)
        self._manifest: dict[str, Any] = json.loads(text)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        self._stops = dict(self.shards)
        self._verified: dict[Shard, tuple[int, int, int]] = {}
        self._open()

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
            start: First place of a shard of the layout.
            features: ``(rows, k)`` floating point; rows that are not finite stay so.

        Raises:
            StoreError: The rows are no shard, have another dimension, or do not fit the store's type.
        """
        shard = (start, start + len(features))
        if self._stops.get(start) != shard[1] or features.shape[1] != self.dim:
            raise StoreError(
                f"places {start}:{shard[1]} with {features.shape[1]} {self.what} are no shard of this store "
                f"({self.num_rows} rows, {self.dim} {self.what}, {len(self.shards)} shards)"
            )
        values = self.rounded(start, features)
        checksum = zlib.crc32(values.view(torch.uint8).numpy().data)
        file = self._file(shard)
        with atomic_path(file) as temporary:
            # One entry: safetensors writes several in an order that changes from run to run.
            seal = json.dumps({"crc32": checksum, "places": shard, "store": self._digest})
            save_file({self.what: values}, temporary, metadata={SEAL: seal})
        self._verified[shard] = _signature(file)

    def rounded(self, start: int, features: Tensor) -> Tensor:
        """``(rows, k)`` from place ``start`` on as they are stored: on the CPU, in the store's type.

        Raises:
            StoreError: They do not fit it.
        """
        values = features.to(device="cpu", dtype=self.dtype).contiguous()
        self._check_rounding(start, features.to("cpu"), values)
        return values

    def making(self, shard: Shard, save_rows: int) -> ShardInTheMaking:
        """A shard that goes on where a kill has ended it.

        Args:
            shard: One of the layout.
            save_rows: Most rows that a kill may lose.
        """
        return ShardInTheMaking(self, shard, self._journal(shard), save_rows)

    def begun(self, shard: Shard) -> int:
        """Rows of a missing shard that are there."""
        return len(self._journal(shard).read()) // self._width

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, ``(rows, k)`` in the store's type) of all rows in their order, a bounded number at a time.

        The blocks depend on n and k alone. A shard is verified before its first row is handed out.

        Raises:
            StoreError: A shard is missing or damaged.
        """
        places = self.layout.places()
        most = max(1, BLOCK_VALUES // self.dim)
        for first in range(0, self.num_rows, GATHERED_BLOCKS * most):
            rows = self._gathered(places[first : first + GATHERED_BLOCKS * most])
            for start in range(0, len(rows), most):
                yield first + start, rows[start : start + most]

    def read(self, shard: Shard) -> Tensor:
        """``(rows, k)`` of one shard, place by place.

        Raises:
            StoreError: It is missing or damaged.
        """
        return self._rows(shard, torch.arange(shard[1] - shard[0]))

    def load(self) -> Tensor:
        """All rows, ``(n, k)`` float32, or float64 if that is what is stored."""
        values = torch.zeros((self.num_rows, self.dim), dtype=torch.promote_types(self.dtype, torch.float32))
        for start, rows in self.blocks():
            values[start : start + len(rows)] = rows
        return values

    def remove(self) -> None:
        """Delete the store."""
        shutil.rmtree(self.path, ignore_errors=True)

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
            self._journal(shard).remove()  # a kill may come between the two
            return True
        logger.warning("%s is damaged: it %s; its %d rows are computed again", file, problem, shard[1] - shard[0])
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
        if seal.get("places") != list(shard):
            return f"holds other places: {seal.get('places')}"
        rows = shard[1] - shard[0]
        if shape != [rows, self.dim] or dtype != self.dtype:
            return f"holds {dtype} {tuple(shape)}, expected {self.dtype} {(rows, self.dim)}"
        if seal.get("crc32") != _checksum(file):
            return "holds values that do not match their checksum"
        self._verified[shard] = _signature(file)
        return None

    def _gathered(self, places: NDArray[np.int64]) -> Tensor:
        """Rows by their places in the store, copied."""
        rows = torch.empty((len(places), self.dim), dtype=self.dtype)
        numbers = np.searchsorted(self.layout.shards, places, side="right") - 1
        for number in np.unique(numbers).tolist():
            own = np.flatnonzero(numbers == number)
            shard = self.shards[number]
            rows[own] = self._rows(shard, torch.from_numpy(places[own] - shard[0]))
        return rows

    def _rows(self, shard: Shard, places: Tensor) -> Tensor:
        """Rows of a shard by their places in it, copied."""
        problem = self._problem(shard)
        if problem:
            raise StoreError(f"{self._file(shard)} {problem}", hint=f"compute the {self.what} again")
        # Opened for each block: pages of a mapping that stays open would count as this process's memory.
        with safe_open(self._file(shard), framework="pt") as opened:
            values: Tensor = opened.get_tensor(self.what)
            return values[places]

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
            row = int(self.layout.order[start + int(lost.nonzero()[0])])
            raise StoreError(
                f"{int(lost.sum())} rows, the first of them row {row}, do not fit "
                f"{str(self.dtype).removeprefix('torch.')}: rounding changes them by more than {LARGEST_LOSS:.0%}",
                hint="use features_dtype: bfloat16 or float32",
            )

    @property
    def _width(self) -> int:
        """Bytes of a row."""
        return self.dim * self.dtype.itemsize

    def _journal(self, shard: Shard) -> Journal:
        seal = f"{self._digest} {shard[0]}".encode()
        return Journal(self._file(shard).with_suffix(".part"), seal, self._width)

    def _file(self, shard: Shard) -> Path:
        return self.path / f"{self.what}-{shard[0]:08d}-{shard[1]:08d}.safetensors"


class ShardInTheMaking:
    """Rows of a shard that come batch by batch.

    Args:
        store: Where the shard goes when it is complete.
        shard: Its places.
        journal: What an earlier run has left of it, and where this one writes.
        save_rows: Most rows that a kill may lose, beside those of a batch in the making.

    Attributes:
        count: Rows that are there.
    """

    def __init__(self, store: FeatureStore, shard: Shard, journal: Journal, save_rows: int) -> None:
        self._store = store
        self._start = shard[0]
        self._journal = journal
        self._save_rows = save_rows
        self._values = torch.empty((shard[1] - shard[0], store.dim), dtype=store.dtype)
        kept = journal.read()
        if kept:
            rows = torch.frombuffer(kept, dtype=store.dtype).view(-1, store.dim)
            self._values[: len(rows)] = rows
        self.count = self._saved = len(kept) // (store.dim * store.dtype.itemsize)

    def expect(self, rows: int) -> None:
        """Write down what is there, if it and the next ``rows`` are more than a kill may lose."""
        if self._saved < self.count and self.count - self._saved + rows > self._save_rows:
            self._journal.append(self._values[self._saved : self.count].view(torch.uint8).numpy())
            self._saved = self.count

    def add(self, rows: Tensor) -> None:
        """Take the next rows, ``(b, k)``.

        Raises:
            StoreError: They do not fit the store's type.
        """
        end = self.count + len(rows)
        self._values[self.count : end] = self._store.rounded(self._start + self.count, rows)
        self.count = end

    def finish(self) -> None:
        """Write the shard, whose rows are all there."""
        self._store.write(self._start, self._values)
        self._journal.remove()


class ScoreStore(FeatureStore):
    """n rows of exact sums, of which scores are made, as :class:`FeatureStore`; 8 k bytes a row.

    Args:
        path: Folder of the store.
        fingerprint: JSON-able facts that fix the values.
        layout: Where the n rows lie.
        dim: k.
    """

    what = "scores"

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], layout: Layout, dim: int) -> None:
        super().__init__(path, fingerprint, layout, dim, "float64")


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
