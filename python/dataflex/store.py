"""Feature store: rows of projected features in shards that survive a kill.

A folder holds ``manifest.json`` (fingerprint, number of rows, dimension, rows a shard) and one file
``features-START-STOP.safetensors`` a shard, written aside, fsynced and renamed. The plan of shards depends on the
number of rows alone, never on who computes them. Each shard carries the SHA-256 of its values and the fingerprint's
digest in its metadata: one that is torn, altered or foreign counts as missing and is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dataflex.errors import StoreError
from dataflex.files import atomic_path, write_json

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SEAL = "dataflex"


class FeatureStore:
    """n rows of k float32 features on disk.

    Args:
        path: Folder of the store.
        fingerprint: JSON-able facts that fix the values (model state, data, projection, ...).
        num_rows: n.
        dim: k.
        shard_rows: Rows a shard.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], num_rows: int, dim: int, shard_rows: int) -> None:
        if shard_rows < 1:
            raise StoreError(f"a shard needs at least one row, got shard_rows={shard_rows}")
        self.path = path
        self.num_rows = num_rows
        self.dim = dim
        self.shard_rows = shard_rows
        facts = {"format": FORMAT_VERSION, "num_rows": num_rows, "dim": dim, "shard_rows": shard_rows}
        text = json.dumps({**facts, "fingerprint": dict(fingerprint)}, sort_keys=True)
        self._manifest: dict[str, Any] = json.loads(text)
        self._digest = _sha256(text.encode())
        self._open()

    @property
    def shards(self) -> list[tuple[int, int]]:
        """The plan: (start, stop) rows of every shard."""
        starts = range(0, self.num_rows, self.shard_rows)
        return [(start, min(start + self.shard_rows, self.num_rows)) for start in starts]

    def missing(self) -> list[tuple[int, int]]:
        """Shards that are not on disk in full; damaged ones are removed and reported."""
        return [shard for shard in self.shards if not self._intact(shard)]

    def write(self, start: int, features: Tensor) -> None:
        """Write one shard.

        Args:
            start: First row, the start of a planned shard.
            features: ``(rows, k)`` floating point, stored as float32.

        Raises:
            StoreError: The rows are not a planned shard or have another dimension.
        """
        stop = start + len(features)
        if (start, stop) not in self.shards or features.shape[1] != self.dim:
            raise StoreError(
                f"rows {start}:{stop} with {features.shape[1]} features are no shard of this store "
                f"({self.num_rows} rows, {self.dim} features, {self.shard_rows} rows a shard)"
            )
        values = features.to(device="cpu", dtype=torch.float32).contiguous()
        with atomic_path(self._file((start, stop))) as temporary:
            # One entry: safetensors writes several in an order that changes from run to run.
            seal = json.dumps({"sha256": _checksum(values), "store": self._digest})
            save_file({"features": values}, temporary, metadata={SEAL: seal})

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """(first row, ``(rows, k)`` float32) of every shard in order; one shard is in memory at a time.

        Raises:
            StoreError: A shard is missing or damaged.
        """
        for shard in self.shards:
            values = self._read(shard)
            if values is None:
                raise StoreError(f"{self._file(shard)} is missing or damaged", hint="compute the features again")
            yield shard[0], values

    def load(self) -> Tensor:
        """All rows, ``(n, k)`` float32."""
        rows = [values for _, values in self.blocks()]
        return torch.cat(rows) if rows else torch.zeros((0, self.dim))

    def remove(self) -> None:
        """Delete the store."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _open(self) -> None:
        file = self.path / MANIFEST
        if file.exists():
            difference = _first_difference(_read_json(file), self._manifest)
            if difference is None:
                return
            logger.warning("features in %s belong to another run (%s); computing them again", self.path, difference)
            self.remove()
        write_json(file, self._manifest)

    def _intact(self, shard: tuple[int, int]) -> bool:
        file = self._file(shard)
        if not file.exists():
            return False
        if self._read(shard) is not None:
            return True
        logger.warning("%s is damaged; its rows are computed again", file)
        file.unlink()
        return False

    def _read(self, shard: tuple[int, int]) -> Tensor | None:
        file = self._file(shard)
        if not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                seal = json.loads((opened.metadata() or {})[SEAL])
                values: Tensor = opened.get_tensor("features")
        except (SafetensorError, OSError, KeyError, ValueError):
            return None
        expected = {"sha256": _checksum(values), "store": self._digest}
        return values if seal == expected and values.shape == (shard[1] - shard[0], self.dim) else None

    def _file(self, shard: tuple[int, int]) -> Path:
        return self.path / f"features-{shard[0]:08d}-{shard[1]:08d}.safetensors"


def _checksum(values: Tensor) -> str:
    return _sha256(values.numpy().tobytes())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _first_difference(found: Any, expected: Mapping[str, Any], prefix: str = "") -> str | None:
    if not isinstance(found, dict):
        return f"{prefix.rstrip('.') or 'manifest'} is damaged"
    for key in sorted({*found, *expected}):
        old, new = found.get(key), expected.get(key)
        if isinstance(new, Mapping):
            deeper = _first_difference(old, new, f"{prefix}{key}.")
            if deeper:
                return deeper
        elif old != new:
            return f"{prefix}{key} differs: {old!r} on disk, {new!r} now"
    return None
