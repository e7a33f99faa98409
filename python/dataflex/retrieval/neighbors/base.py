"""The contract of an index of unit vectors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import SelectionError

_NORM_TOLERANCE = 1e-3
"""How far from 1 the length of a unit vector may be: far above float32 rounding, far below a forgotten norm."""


@dataclass(frozen=True)
class Neighbors:
    """The k nearest of n vectors for each of q queries.

    Attributes:
        indices: ``(q, k)`` int64 positions, nearest first.
        similarities: ``(q, k)`` float32 cosines, falling.
    """

    indices: NDArray[np.int64]
    similarities: NDArray[np.float32]


class NeighborIndex(ABC):
    """n unit vectors of dimension d that can be searched.

    Attributes:
        kind: How configurations and sidecars call it.
        size: n.
        dim: d.
    """

    kind: ClassVar[str]
    size: int
    dim: int

    @abstractmethod
    def search(self, queries: NDArray[np.float32], k: int) -> Neighbors:
        """The k nearest vectors of each query.

        Args:
            queries: ``(q, d)`` float32 unit rows.
            k: At most n.

        Raises:
            SelectionError: k is out of range or the queries have another shape.
        """

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the index to ``path`` (and, for some kinds, a file beside it), atomically."""

    def describe(self) -> dict[str, Any]:
        """JSON-able facts for the sidecar of a search."""
        return {"kind": self.kind}

    def check_search(self, queries: NDArray[np.float32], k: int) -> None:
        """Raise SelectionError unless ``k`` and the shape of ``queries`` fit this index."""
        if not 1 <= k <= self.size:
            raise SelectionError(f"{k} neighbours were asked for, the index holds {self.size} vectors")
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise SelectionError(f"queries have shape {queries.shape}, the index holds vectors of dimension {self.dim}")


def check_vectors(vectors: NDArray[np.float32]) -> None:
    """Raise SelectionError unless ``vectors`` is ``(n, d)`` float32 with n >= 1 and rows of length 1."""
    if vectors.ndim != 2 or vectors.dtype != np.float32 or not vectors.size:
        raise SelectionError(f"expected float32 vectors of shape (n, d), got {vectors.dtype}{vectors.shape}")
    norms = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    wrong = np.flatnonzero(~(np.abs(norms - 1) < _NORM_TOLERANCE))
    if len(wrong):
        raise SelectionError(
            f"{len(wrong)} of {len(vectors)} vectors are not of length 1, the first at {wrong[0]} "
            f"({norms[wrong[0]]:.6g}); cosine search needs unit vectors"
        )
