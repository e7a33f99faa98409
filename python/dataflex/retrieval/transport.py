"""TSDS: how probable each candidate should be, so that a draw looks like the target.

Liu, Karbasi and Rekatsinas, "TSDS: Data Selection for Task-Specific Model Finetuning" (arXiv 2410.11303), in the form
of the authors' code. Optimal transport moves the mass 1 / q of each query to its nearest candidates; a candidate of
density rho takes at most 1 / (q s rho), so that near-duplicates share what one of them would take:

    rho_i = sum_j max(0, 1 - d_ij^2 / sigma^2)      over the kde_K nearest retrieved candidates, itself included,

with Euclidean distances d between unit vectors. The spread s grows in steps: each step lets the query whose list
fills up first hand mass on to its next neighbour, at the cost sum_k (d_next - d_k) / rho_k. It stops where

    (alpha / C) * cost >= (1 - alpha) * q,

so a small alpha (or a large C) spreads the mass over more candidates, a large alpha keeps it near the queries. What
is left of a query's mass then goes to the neighbour after the last full one.

Deviations: neighbours are exact; a query whose first neighbour alone can take its whole mass gives it no more than
that (the authors' code stops with a failed assertion there).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataflex.errors import SelectionError
from dataflex.utils.distributed import Ranks

HELD_VALUES = 1 << 22
"""Similarities that are held at once, 16 MiB of float32."""
COLUMNS = 2048
"""Vectors that a block is compared with at once."""


@dataclass(frozen=True)
class Transport:
    """Probabilities of the candidates, and how they came about.

    Attributes:
        probabilities: ``(n,)`` float64, sum 1.
        spread: s at the end.
        used: ``(q,)`` int64: neighbours of each query that its mass went to.
        stopped: True if the cost ended the growth, False if the neighbours did.
    """

    probabilities: NDArray[np.float64]
    spread: float
    used: NDArray[np.int64]
    stopped: bool


def densities(vectors: Tensor, kde_k: int, sigma: float, ranks: Ranks | None = None) -> NDArray[np.float64]:
    """Kernel density of each vector among all of them.

    Vectors are compared block by block, with at most :data:`HELD_VALUES` similarities at once: a row's density is the
    sum of its kde_k largest kernel values, whichever vectors these belong to. The blocks depend on n and kde_k alone,
    so that the number of ranks changes no bit.

    Args:
        vectors: ``(n, d)`` float32 unit rows, on the device that is to compute.
        kde_k: Nearest vectors that count, itself included; more than n are n.
        sigma: Radius beyond which nothing counts; 0 makes every density 1.
        ranks: Processes that hold the same vectors and share the rows; None: this one alone.

    Returns:
        ``(n,)`` float64, 1 (up to rounding) for a vector without others near it.
    """
    ranks, count = ranks or Ranks(), len(vectors)
    if sigma == 0:
        return np.ones(count)
    width = min(kde_k, count)
    rows = max(1, HELD_VALUES // (2 * (width + COLUMNS)))  # the products of a block, and the best of it so far
    starts = range(0, count, rows)

    def own() -> Tensor:
        shares = [_block_densities(vectors, start, rows, width, sigma) for start in ranks.share(starts)]
        return torch.cat(shares) if shares else torch.empty(0, dtype=torch.float64)

    found = np.empty(count)
    for rank, values in enumerate(ranks.gather_tensors(ranks.together(own))):
        place = 0
        for start in starts[rank :: ranks.count]:
            size = min(rows, count - start)
            found[start : start + size] = values[place : place + size].numpy()
            place += size
    return found


def _block_densities(vectors: Tensor, start: int, rows: int, width: int, sigma: float) -> Tensor:
    """Densities ``(b,)`` float64, on the CPU, of the rows from ``start`` on."""
    block = vectors[start : start + rows]
    best = vectors.new_empty((len(block), 0))
    for first in range(0, len(vectors), COLUMNS):
        similarities = block @ vectors[first : first + COLUMNS].T  # (b, columns)
        best = torch.cat([best, similarities], dim=1)
        best = best.topk(min(width, best.shape[1]), dim=1).values
    squared = (2.0 - 2.0 * best.double()).clamp_min(0.0)
    return (1.0 - squared / sigma**2).clamp_min(0.0).sum(dim=1).cpu()


def distances(similarities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Euclidean distances of unit vectors with these cosines: sqrt(2 - 2 cos)."""
    return np.sqrt(np.maximum(0.0, 2.0 - 2.0 * similarities.astype(np.float64)))


def transport(
    neighbors: NDArray[np.int64],
    lengths: NDArray[np.float64],
    density: NDArray[np.float64],
    num_candidates: int,
    *,
    alpha: float,
    scale: float,
) -> Transport:
    """Spread the mass of the queries over their neighbours.

    Args:
        neighbors: ``(q, K)`` int64 candidates, nearest first, K >= 2.
        lengths: ``(q, K)`` float64 distances to them, rising.
        density: ``(q, K)`` float64 density of each of them.
        num_candidates: n.
        alpha: Weight of the transport cost, 0 to 1; the rest weighs the spread.
        scale: C, a length of the scale of the distances.

    Raises:
        SelectionError: Fewer than two neighbours a query.
    """
    q, width = neighbors.shape
    if width < 2:
        raise SelectionError(f"transport needs at least 2 neighbours of each query, got {width}", hint="a larger max_K")
    share = 1.0 / density  # (q, K) mass that each takes, in units of 1 / (q s)
    last = np.zeros(q, dtype=np.int64)
    weighted = lengths[:, 0] * share[:, 0]  # (q,) sum of d_k / rho_k over the neighbours that are full
    cost = np.zeros(q)
    queue = [(float(share[j, 0]), 0, j) for j in range(q)]
    heapq.heapify(queue)
    total, spread, stopped = 0.0, 0.0, False
    while queue:
        spread, k, j = heapq.heappop(queue)
        total -= cost[j]
        cost[j] = lengths[j, k + 1] * spread - weighted[j]
        total += cost[j]
        if alpha / scale * total >= (1 - alpha) * q:
            stopped = True
            break
        last[j] = k
        if k < width - 2:
            weighted[j] += lengths[j, k + 1] * share[j, k + 1]
            heapq.heappush(queue, (spread + float(share[j, k + 1]), k + 1, j))
    # Neighbours are filled in their order up to `last`; the next one takes the rest.
    capacity = np.where(np.arange(width) <= last[:, None], share / (q * spread), 0.0)  # (q, K)
    before = np.cumsum(capacity, axis=1) - capacity
    mass = np.clip(1.0 / q - before, 0.0, capacity)
    mass[np.arange(q), last + 1] = np.maximum(1.0 / q - mass.sum(axis=1), 0.0)
    probabilities = np.zeros(num_candidates)
    np.add.at(probabilities, neighbors, mass)
    return Transport(probabilities / probabilities.sum(), spread, (mass > 0).sum(axis=1), stopped)
