"""The matrix of NEAR on disk, and how it is told which training data it belongs to.

``NAME.npy`` holds the ``(n_queries, max_K)`` int64 row numbers of each query's nearest candidates,
``NAME.similarities.npy`` their float32 cosines in the same places (older matrices have none), ``NAME.rows.npy`` the
``(n, 2)`` int64 row number and content digest of every candidate, and ``NAME.json`` says what they were made from and
seals them with their SHA-256. The digests let a training run check row by row that it
trains on the data that was searched, also where it has lost rows on the way (too long, split off for evaluation).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import SelectionError
from dataflex.types import Sample
from dataflex.utils.files import atomic_path, write_json

FORMAT_VERSION = 1
REBUILD = "make the matrix again with `dataflex near`"


@dataclass(frozen=True)
class NearMatrix:
    """Nearest candidates of each query.

    Attributes:
        neighbors: ``(q, max_K)`` int64 row numbers of candidates, nearest first.
        rows: ``(n,)`` int64 row numbers of all candidates, rising; empty if they are not known.
        digests: ``(n,)`` int64 content digests of all candidates.
        facts: What the sidecar says.
        similarities: ``(q, max_K)`` float32 cosines of ``neighbors``; None in a matrix that was saved without.
    """

    neighbors: NDArray[np.int64]
    rows: NDArray[np.int64]
    digests: NDArray[np.int64]
    facts: dict[str, Any] = field(default_factory=dict)
    similarities: NDArray[np.float32] | None = None

    def save(self, path: Path) -> None:
        """Write the files, the sealing sidecar last."""
        table = np.stack([self.rows, self.digests], axis=1)
        seals = {"matrix": _write_array(path, self.neighbors), "rows": _write_array(rows_path(path), table)}
        if self.similarities is not None:
            seals["similarities"] = _write_array(similarities_path(path), self.similarities)
        else:  # those of an earlier matrix of this name would not fit
            similarities_path(path).unlink(missing_ok=True)
        write_json(sidecar_path(path), {"format": FORMAT_VERSION, **self.facts, "sha256": seals})

    def walk(self, order: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Distinct row numbers, rank by rank: every query's first neighbour, then every query's second, ...

        Args:
            order: ``(q,)`` order of the queries inside each rank; None: as they stand.
        """
        ranked = (self.neighbors if order is None else self.neighbors[order]).T.ravel()
        _, first = np.unique(ranked, return_index=True)
        return ranked[np.sort(first)]

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raise SelectionError unless every sample is one of the candidates, in row number and content."""
        place = {int(row): number for number, row in enumerate(self.rows)}
        digests = sample_digests(samples)
        wrong = [
            sample
            for sample, digest in zip(samples, digests, strict=True)
            if (number := place.get(sample.row)) is None or self.digests[number] != digest
        ]
        if wrong:
            shown = ", ".join(f"row {sample.row} (id {sample.id!r})" for sample in wrong[:3])
            source = self.facts.get("candidates", {}).get("source", "other data")
            raise SelectionError(
                f"the neighbours were searched in other data than this training set: {len(wrong)} of {len(samples)} "
                f"samples differ from the {len(self.rows)} candidates of {source}, the first: {shown}",
                hint=f"train on the candidates, or {REBUILD}, candidate_path being the training data",
            )


def load_matrix(path: Path, *, verify: bool = True) -> NearMatrix:
    """Read and check a matrix.

    Args:
        path: The ``.npy`` file.
        verify: Demand the sidecar and what it seals; False takes a bare matrix, whose rows nothing is known about.

    Raises:
        SelectionError: The file is missing, damaged or no matrix of row numbers, or the sidecar does not fit.
    """
    neighbors = _read_array(path)
    if neighbors.ndim != 2 or neighbors.dtype != np.int64 or not neighbors.size:
        raise SelectionError(
            f"{path}: expected an int64 matrix of shape (n_queries, max_K), got {neighbors.dtype}{neighbors.shape}",
            hint=REBUILD,
        )
    if int(neighbors.min()) < 0:
        raise SelectionError(f"{path}: row numbers start at 0, found {int(neighbors.min())}", hint=REBUILD)
    if not verify:
        nothing = np.empty(0, dtype=np.int64)
        return NearMatrix(neighbors, nothing, nothing)
    facts = _read_sidecar(sidecar_path(path))
    table = _read_array(rows_path(path))
    seals = facts.get("sha256")
    sealed = [(path, "matrix"), (rows_path(path), "rows")]
    similarities = None
    if isinstance(seals, dict) and "similarities" in seals:
        similarities = _read_array(similarities_path(path))
        sealed.append((similarities_path(path), "similarities"))
    for file, key in sealed:
        if not isinstance(seals, dict) or seals.get(key) != _file_digest(file):
            raise SelectionError(f"{file} is not the file that {sidecar_path(path)} describes", hint=REBUILD)
    matrix = NearMatrix(neighbors, table[:, 0].copy(), table[:, 1].copy(), facts, similarities)
    beyond = np.setdiff1d(neighbors, matrix.rows)
    if len(beyond):
        raise SelectionError(f"{path}: {len(beyond)} row numbers are no candidates, such as {beyond[0]}", hint=REBUILD)
    return matrix


def sample_digests(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """The first 8 bytes of SHA-256 over conversation and tools of each sample, ``(n,)`` int64."""
    values = []
    for sample in samples:
        content = json.dumps([list(sample.messages), list(sample.tools)], sort_keys=True)
        values.append(hashlib.sha256(content.encode()).digest()[:8])
    return np.frombuffer(b"".join(values), dtype="<i8").astype(np.int64)


def dataset_facts(source: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Name, number of rows and fingerprint of a dataset, for the sidecar."""
    rows = np.array([sample.row for sample in samples], dtype="<i8")
    content = rows.tobytes() + sample_digests(samples).astype("<i8").tobytes()
    return {"source": source, "rows": len(samples), "fingerprint": hashlib.sha256(content).hexdigest()}


def sidecar_path(path: Path) -> Path:
    """The JSON file beside a matrix."""
    return path.with_suffix(".json")


def similarities_path(path: Path) -> Path:
    """The file of cosines beside a matrix."""
    return path.with_suffix(".similarities.npy")


def rows_path(path: Path) -> Path:
    """The file of candidates beside a matrix."""
    return path.with_suffix(".rows.npy")


def _write_array(path: Path, values: NDArray[Any]) -> str:
    """Write an array and return the file's SHA-256."""
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
        return _file_digest(temporary)


def _read_array(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
            rest = file.read(1)
    except FileNotFoundError as error:
        raise SelectionError(f"{path.absolute()} does not exist", hint=REBUILD) from error
    except (OSError, ValueError, EOFError, MemoryError) as error:  # a torn header may ask for any size
        raise SelectionError(f"{path} is not a readable .npy file: {error}", hint=REBUILD) from error
    if rest:
        raise SelectionError(f"{path} goes on behind its array: it is damaged", hint=REBUILD)
    return values


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SelectionError(
            f"{path.absolute()} does not exist: it says which data the matrix was made from",
            hint=f"{REBUILD}; a matrix from elsewhere is taken unchecked with verify: false",
        ) from error
    except (OSError, ValueError) as error:
        raise SelectionError(f"{path} is not readable JSON: {error}", hint=REBUILD) from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT_VERSION:
        raise SelectionError(f"{path} is no sidecar of a NEAR matrix of format {FORMAT_VERSION}", hint=REBUILD)
    return facts


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
