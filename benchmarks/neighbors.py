"""Nearest neighbours of 384-dimensional unit vectors: recall, build and query time, memory, beside peers.

Usage: python benchmarks/neighbors.py [--sizes 10000 100000] [--data clustered random] [--k 10] [--queries 1000]

Each line is a process of its own, so that its peak memory is its own. Times are CPU seconds of all threads, which other
work on the machine disturbs little. ``numpy`` is one matrix product and a partition for all queries at once; faiss is
left out where it is not installed. Recall is measured against ``exact`` on all queries, but for the figure that
dataflex's own hnsw tuned itself by.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

DIM = 384
MIN_RECALL = 0.99
TUNING_QUERIES = 200
Vectors = NDArray[np.float32]


def unit(vectors: Vectors) -> Vectors:
    """Rows of length 1, in place."""
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def make(kind: str, n: int, q: int) -> tuple[Vectors, Vectors]:
    """Unit vectors and queries: ``random`` directions, or ``clustered`` around sqrt(n) of them (cosine about 0.8)."""
    stream = np.random.default_rng(0)
    draw = stream.standard_normal((n + q, DIM), dtype=np.float32)
    if kind == "clustered":
        centres = unit(stream.standard_normal((int(n**0.5), DIM), dtype=np.float32))
        draw *= 0.5 / DIM**0.5
        draw += centres[stream.integers(len(centres), size=n + q)]
    unit(draw)
    return draw[:n], draw[n:]


def hits(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Share of the true neighbours ``(q, k)`` that were found."""
    return float(np.mean([np.isin(left, right).mean() for left, right in zip(truth, found, strict=True)]))


def exact(vectors: Vectors, k: int, sample: Vectors) -> tuple[Callable[[Vectors], NDArray[np.int64]], str]:
    """Brute force of dataflex."""
    from dataflex.retrieval.neighbors.exact import ExactIndex

    del sample
    index = ExactIndex(vectors)
    return lambda queries: index.search(queries, k).indices, ""


def hnsw(vectors: Vectors, k: int, sample: Vectors) -> tuple[Callable[[Vectors], NDArray[np.int64]], str]:
    """The graph of dataflex, tuned on ``sample``."""
    from dataflex.retrieval.neighbors.exact import ExactIndex
    from dataflex.retrieval.neighbors.hnsw import HnswIndex

    index = HnswIndex(vectors)
    check = index.tune(sample, ExactIndex(vectors).search(sample, k), MIN_RECALL, population=10 * len(sample))
    return lambda queries: index.search(queries, k).indices, f"ef {check.ef}, tuned to {check.recall:.4f}"


def numpy_product(vectors: Vectors, k: int, sample: Vectors) -> tuple[Callable[[Vectors], NDArray[np.int64]], str]:
    """One product, one partition."""
    del sample
    return lambda queries: np.argpartition(queries @ vectors.T, -k, axis=1)[:, -k:], ""


def faiss_flat(vectors: Vectors, k: int, sample: Vectors) -> tuple[Callable[[Vectors], NDArray[np.int64]], str]:
    """Brute force of faiss."""
    import faiss

    del sample
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors)
    return lambda queries: index.search(queries, k)[1], ""


def faiss_hnsw(vectors: Vectors, k: int, sample: Vectors) -> tuple[Callable[[Vectors], NDArray[np.int64]], str]:
    """The graph of faiss with the same M and efConstruction, ef raised in the same way."""
    import faiss

    index = faiss.IndexHNSWFlat(DIM, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 200
    index.add(vectors)
    truth = numpy_product(vectors, k, sample)[0](sample)  # torch and faiss in one process can lock up
    ef = max(k, 16)
    while True:
        index.hnsw.efSearch = ef
        reached = hits(index.search(sample, k)[1], truth)
        if reached >= MIN_RECALL or ef >= len(vectors) // 2:
            break
        ef *= 2
    return lambda queries: index.search(queries, k)[1], f"ef {ef}, tuned to {reached:.4f}"


METHODS = {"exact": exact, "hnsw": hnsw, "numpy": numpy_product, "faiss flat": faiss_flat, "faiss hnsw": faiss_hnsw}


def measure(method: str, kind: str, n: int, q: int, k: int, folder: Path) -> dict[str, float | str]:
    """One method on one set of vectors; ``exact`` leaves its neighbours in ``folder`` for the others."""
    vectors, queries = make(kind, n, q)
    METHODS[method](vectors[:100], min(k, 50), queries[:1])  # imports and thread pools do not count
    before = time.process_time()
    search, note = METHODS[method](vectors, k, queries[:TUNING_QUERIES])
    built = time.process_time()
    found = search(queries)
    done = time.process_time()
    truth = folder / "exact.npy"
    if method == "exact":
        np.save(truth, found)
    return {
        "recall": hits(found, np.load(truth)),
        "build": built - before,
        "query": 1000 * (done - built) / q,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "note": note,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--data", nargs="+", default=["clustered", "random"], choices=["clustered", "random"])
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, nargs="+", default=[10])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        method, kind, n, q, k, folder = options.one
        print(json.dumps(measure(method, kind, int(n), int(q), int(k), Path(folder))))
        return
    head = ("data", "n", "k", "method", "recall", "build CPU s", "query CPU ms", "peak MB", "")
    print("{:<10}{:>9}{:>6}  {:<11}{:>8}{:>13}{:>14}{:>10}  {}".format(*head))
    for kind, n, k in [(kind, n, k) for kind in options.data for n in options.sizes for k in options.k]:
        with TemporaryDirectory() as folder:
            for method in options.methods:
                if method.startswith("faiss") and importlib.util.find_spec("faiss") is None:
                    continue
                one = [method, kind, str(n), str(options.queries), str(k), folder]
                done = subprocess.run(
                    [sys.executable, __file__, "--one", *one], capture_output=True, text=True, check=False
                )
                if done.returncode:
                    print(f"{kind:<10}{n:>9}{k:>6}  {method:<11} failed: {done.stderr.strip().splitlines()[-1]}")
                    continue
                row = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"{kind:<10}{n:>9}{k:>6}  {method:<11}{row['recall']:>8.4f}{row['build']:>13.1f}"
                    f"{row['query']:>14.3f}{row['memory']:>10.0f}  {row['note']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
