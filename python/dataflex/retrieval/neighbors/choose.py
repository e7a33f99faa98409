"""Which index answers a search, and whether its answers are good enough.

On a CPU a graph costs about 1 ms a vector to build, and brute force 24 ns a query and vector (measured at 100,000
vectors of 384 dimensions, CPU time of all threads): whatever the number of vectors, the graph pays from about 50,000
queries on. ``auto`` therefore builds one for that many queries only, or uses one that an earlier search left behind;
and it goes back to brute force if the graph does not reach the wanted recall, or only where it is no quicker.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import SelectionError, StoreError
from dataflex.retrieval.neighbors.base import NeighborIndex, Neighbors
from dataflex.retrieval.neighbors.exact import ExactIndex
from dataflex.retrieval.neighbors.hnsw import HnswIndex

logger = logging.getLogger(__name__)

GRAPH_QUERIES = 50_000
GRAPH_VECTORS = 10_000
"""Below so many vectors brute force takes a fraction of a millisecond a query."""


@dataclass(frozen=True)
class IndexSettings:
    """What is asked of an index.

    Attributes:
        kind: ``exact``, ``hnsw`` or ``auto``.
        min_recall: Share of the true neighbours that hnsw must find.
        recall_queries: Queries on which that is measured.
        m: Links of a vector in the graph.
        ef_construction: Breadth of the search for links.
        seed: Seed of the graph and of the sampled queries.
        device: Where exact products run.
    """

    kind: Literal["auto", "exact", "hnsw"] = "auto"
    min_recall: float = 0.99
    recall_queries: int = 200
    m: int = 32
    ef_construction: int = 200
    seed: int = 42
    device: str = "cpu"


def choose_index(
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    settings: IndexSettings,
    *,
    path: Path | None = None,
) -> NeighborIndex:
    """An index that is ready to search ``queries`` for their ``k`` nearest.

    Args:
        vectors: ``(n, d)`` float32 unit rows.
        queries: ``(q, d)`` float32 unit rows.
        k: Neighbours of each query.
        settings: What is asked for.
        path: Where a graph is kept for the next search; None keeps none.

    Raises:
        SelectionError: ``hnsw`` was asked for and does not reach ``min_recall``, or hnswlib is not installed.
    """
    exact = ExactIndex(vectors, device=settings.device)
    exact.check_search(queries, k)
    if settings.kind == "exact" or (settings.kind == "auto" and not _graph_pays(exact, len(queries), path)):
        return exact
    graph = _graph(vectors, settings, path)
    stream = np.random.default_rng([settings.seed, len(queries)])
    rows = stream.choice(len(queries), size=min(settings.recall_queries, len(queries)), replace=False)
    sample = queries[np.sort(rows)]
    truth, exact_seconds = _timed(exact, sample, k)
    check = graph.tune(sample, truth, settings.min_recall, population=len(queries))
    facts = f"recall {check.recall:.4f} +- {check.error:.4f} at ef {check.ef} on {check.queries} queries"
    if not check.reaches(settings.min_recall):
        tried = ", ".join(f"ef {ef}: {recall:.4f}" for ef, recall in check.tried)
        if settings.kind == "hnsw":
            raise SelectionError(
                f"hnsw does not reach min_recall {settings.min_recall} for {k} neighbours ({tried})",
                hint="index: exact, a larger hnsw_m, or a smaller min_recall",
            )
        logger.warning("hnsw does not reach recall %s (%s): searching exactly", settings.min_recall, tried)
        return exact
    _, graph_seconds = _timed(graph, sample, k)
    speed = f"{1000 * graph_seconds / len(sample):.2f} ms a query, exact {1000 * exact_seconds / len(sample):.2f} ms"
    slower = graph_seconds >= exact_seconds
    if slower and settings.kind == "auto":
        logger.info("hnsw: %s, %s: searching exactly", facts, speed)
        return exact
    logger.log(logging.WARNING if slower else logging.INFO, "hnsw: %s, %s", facts, speed)
    return graph


def _graph_pays(exact: ExactIndex, num_queries: int, path: Path | None) -> bool:
    if exact.device.type != "cpu":
        return False
    kept = path is not None and path.exists()
    if not kept and (num_queries < GRAPH_QUERIES or exact.size < GRAPH_VECTORS):
        return False
    if importlib.util.find_spec("hnswlib") is None:
        logger.info("searching exactly: hnsw may be quicker here, but hnswlib is not installed (extra near)")
        return False
    return True


def _graph(vectors: NDArray[np.float32], settings: IndexSettings, path: Path | None) -> HnswIndex:
    """The graph that was kept, or a new one."""
    if path is not None and path.exists():
        try:
            loaded = HnswIndex.load(
                path, vectors, m=settings.m, ef_construction=settings.ef_construction, seed=settings.seed
            )
        except StoreError as error:
            logger.warning("%s; building it again", error.message)
        else:
            logger.info("using the hnsw index %s", path)
            return loaded
    graph = HnswIndex(vectors, m=settings.m, ef_construction=settings.ef_construction, seed=settings.seed)
    if path is not None:
        graph.save(path)
    return graph


def _timed(index: NeighborIndex, queries: NDArray[np.float32], k: int) -> tuple[Neighbors, float]:
    """Neighbours, and the CPU seconds of all threads: other work on the machine disturbs them little."""
    start = time.process_time()
    found = index.search(queries, k)
    return found, time.process_time() - start
