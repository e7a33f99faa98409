"""Approximate neighbours: a navigable small-world graph (Malkov and Yashunin 2016, arXiv 1603.09320) by hnswlib.

The breadth ``ef`` of a search is not guessed: it is raised until the recall that was measured on a sample of the real
queries, against the exact neighbours, is high enough.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import SelectionError, StoreError
from dataflex.retrieval.neighbors.base import NeighborIndex, Neighbors, check_vectors
from dataflex.utils.files import atomic_path, write_json
from dataflex.utils.progress import progress_bar

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MAX_EF_SHARE = 0.5
"""An ef beyond this share of the vectors visits so many of them that brute force is quicker."""
ROUNDING = 1e-6
"""How far two float32 computations of one cosine may be apart."""
_ADD_ROWS = 4096


@dataclass(frozen=True)
class RecallCheck:
    """Recall of the neighbours that a search found, measured against the exact ones.

    Attributes:
        queries: How many queries were measured.
        k: Neighbours of each.
        recall: Share of the exact neighbours that were found, 0 to 1.
        error: Standard error of that share as an estimate for all queries; 0 if all were measured.
        ef: Breadth of the search that reached it.
        tried: (ef, recall) of every breadth that was tried.
    """

    queries: int
    k: int
    recall: float
    error: float
    ef: int
    tried: tuple[tuple[int, float], ...]

    def reaches(self, min_recall: float) -> bool:
        """Whether recall over all queries is at least ``min_recall``, with 97 % confidence."""
        return self.recall - 2 * self.error >= min_recall


class HnswIndex(NeighborIndex):
    """A graph over unit vectors.

    The graph depends on the order in which threads insert; with one thread it is fixed by the seed.

    Args:
        vectors: ``(n, d)`` float32 unit rows.
        m: Links of a vector; more find more on data of high dimension, at the cost of memory and time.
        ef_construction: Breadth of the search for links while building.
        seed: Seed of the levels.
        threads: Threads of building and searching; 0: all processors.

    Raises:
        SelectionError: hnswlib is not installed, or the vectors are not unit rows.
    """

    kind: ClassVar[str] = "hnsw"

    def __init__(
        self,
        vectors: NDArray[np.float32],
        *,
        m: int = 32,
        ef_construction: int = 200,
        seed: int = 42,
        threads: int = 0,
    ) -> None:
        check_vectors(vectors)
        self.size, self.dim = vectors.shape
        self.m, self.ef_construction, self.seed = m, ef_construction, seed
        self.check: RecallCheck | None = None
        self.digest = _digest(vectors)
        self._graph = _import_hnswlib().Index(space="ip", dim=self.dim)
        self._graph.set_num_threads(threads or os.cpu_count() or 1)
        self._graph.init_index(self.size, M=m, ef_construction=ef_construction, random_seed=seed)
        with progress_bar(self.size, "building the hnsw index", unit="vector") as bar:
            for start in range(0, self.size, _ADD_ROWS):
                rows = vectors[start : start + _ADD_ROWS]
                self._graph.add_items(rows, np.arange(start, start + len(rows)))
                bar.update(len(rows))

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbors:
        """See :meth:`NeighborIndex.search`; ef is at least k.

        Raises:
            SelectionError: Also if the graph does not reach k vectors from some query.
        """
        self.check_search(queries, k)
        return self._search(queries, k, self.check.ef if self.check else k)

    def tune(
        self,
        queries: NDArray[np.float32],
        exact: Neighbors,
        min_recall: float,
        *,
        population: int | None = None,
    ) -> RecallCheck:
        """Raise ef until recall surely reaches ``min_recall``, or until ef is half of the vectors.

        Args:
            queries: ``(s, d)`` unit rows, a sample of those that will be searched.
            exact: Their exact neighbours, ``(s, k)``.
            min_recall: Wanted share of the exact neighbours.
            population: How many queries will be searched; None: the sample is all of them.

        Returns:
            What was reached; later searches use its ef.
        """
        k = exact.indices.shape[1]
        highest = max(k, int(self.size * MAX_EF_SHARE))
        ef = min(max(k, 16), highest)
        tried: list[tuple[int, float]] = []
        while True:
            hits = self._hits(queries, exact, ef)
            tried.append((ef, float(hits.mean())))
            error = _standard_error(hits, population or len(hits))
            self.check = RecallCheck(len(queries), k, tried[-1][1], error, ef, tuple(tried))
            if self.check.reaches(min_recall) or ef == highest:
                return self.check
            ef = min(2 * ef, highest)

    def describe(self) -> dict[str, Any]:
        """Kind and settings of the graph, and the recall that was measured."""
        facts = {"kind": self.kind, "m": self.m, "ef_construction": self.ef_construction, "seed": self.seed}
        return facts | {"recall_check": asdict(self.check) if self.check else None}

    def save(self, path: Path) -> None:
        """Write the graph to ``path`` and its description to ``path`` with ``.json`` added."""
        with atomic_path(path) as temporary:
            self._graph.save_index(str(temporary))
            checksum = _file_digest(temporary)
        write_json(_sidecar(path), {**self._facts(), "sha256": checksum})

    @classmethod
    def load(
        cls,
        path: Path,
        vectors: NDArray[np.float32],
        *,
        m: int = 32,
        ef_construction: int = 200,
        seed: int = 42,
        threads: int = 0,
    ) -> HnswIndex:
        """Read what :meth:`save` wrote for the same vectors and settings.

        Raises:
            StoreError: The files are missing, damaged, or belong to other vectors or settings.
        """
        index = cls.__new__(cls)
        index.size, index.dim = vectors.shape
        index.m, index.ef_construction, index.seed, index.check = m, ef_construction, seed, None
        index.digest = _digest(vectors)
        stored = _read_sidecar(path)
        checksum = stored.pop("sha256", None)
        if stored != index._facts():
            raise StoreError(f"{path} is an index of other vectors or settings", hint="build it again")
        if not path.is_file() or checksum != _file_digest(path):  # hnswlib trusts the bytes that it reads
            raise StoreError(f"{path} is missing or damaged", hint="build the index again")
        index._graph = _import_hnswlib().Index(space="ip", dim=index.dim)
        index._graph.load_index(str(path), max_elements=index.size)
        index._graph.set_num_threads(threads or os.cpu_count() or 1)
        return index

    def _facts(self) -> dict[str, Any]:
        facts = {"format": FORMAT_VERSION, "m": self.m, "ef_construction": self.ef_construction, "seed": self.seed}
        return facts | {"size": self.size, "dim": self.dim, "vectors": self.digest}

    def _hits(self, queries: NDArray[np.float32], exact: Neighbors, ef: int) -> NDArray[np.float64]:
        """Recall of each query ``(s,)``."""
        try:
            found = self._search(queries, exact.indices.shape[1], ef)
        except SelectionError:  # part of the graph is out of reach at this breadth
            return np.zeros(len(queries))
        return recalls(found, exact)

    def _search(self, queries: NDArray[np.float32], k: int, ef: int) -> Neighbors:
        self._graph.set_ef(max(ef, k))
        try:
            labels, distances = self._graph.knn_query(queries, k=k)
        except RuntimeError as error:
            raise SelectionError(
                f"hnsw did not reach {k} vectors at ef {max(ef, k)}: {error}", hint="index: exact, or a larger hnsw_m"
            ) from error
        return Neighbors(labels.astype(np.int64), (1 - distances).astype(np.float32))


def recalls(found: Neighbors, exact: Neighbors) -> NDArray[np.float64]:
    """Share of the found neighbours ``(s, k)`` that are as near as the exact k-th, for each query ``(s,)``.

    Nearness decides, not the position: of equally near vectors any will do.
    """
    worst = exact.similarities[:, -1:] - ROUNDING
    return np.asarray((found.similarities >= worst).mean(axis=1), dtype=np.float64)


def _standard_error(hits: NDArray[np.float64], population: int) -> float:
    """Of the mean over a sample drawn without replacement."""
    count = len(hits)
    if count >= population:
        return 0.0
    if count == 1:
        return 1.0  # nothing is known about the spread
    return float(hits.std(ddof=1) / np.sqrt(count) * np.sqrt(1 - count / population))


def _import_hnswlib() -> Any:
    try:
        import hnswlib
    except ImportError as error:
        raise SelectionError(
            f"index 'hnsw' needs hnswlib, which cannot be imported: {error}",
            hint='pip install "dataflex-sdk[near]", or index: exact',
        ) from error
    return hnswlib


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        stored = json.loads(_sidecar(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{_sidecar(path)} is missing or damaged", hint="build the index again") from error
    return stored if isinstance(stored, dict) else {}


def _digest(vectors: NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
