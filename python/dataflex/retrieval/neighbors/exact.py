"""Exact neighbours: matrix products in blocks with a running top-k.

Memory is a block of similarities and the best k so far, whatever n and q. A later block only sorts what beats the k-th
best so far, which are few: k (block / seen) a query on shuffled data. Equal similarities are ranked by position.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dataflex.errors import StoreError
from dataflex.retrieval.neighbors.base import NeighborIndex, Neighbors, check_vectors
from dataflex.utils.files import atomic_path

QUERY_ROWS = 512
VECTOR_ROWS = 8192
"""A block of similarities is 512 x 8192 float32: 16 MB, which stays near the last-level cache."""


class ExactIndex(NeighborIndex):
    """Brute force.

    Args:
        vectors: ``(n, d)`` float32 unit rows.
        device: Where the products run.
        query_rows: Queries a block.
        vector_rows: Vectors a block.

    Raises:
        SelectionError: The vectors are not unit rows.

    Example:
        >>> ExactIndex(np.eye(3, dtype=np.float32)).search(np.eye(3, dtype=np.float32), 1).indices.tolist()
        [[0], [1], [2]]
    """

    kind: ClassVar[str] = "exact"

    def __init__(
        self,
        vectors: NDArray[np.float32],
        *,
        device: str = "cpu",
        query_rows: int = QUERY_ROWS,
        vector_rows: int = VECTOR_ROWS,
    ) -> None:
        check_vectors(vectors)
        self.size, self.dim = vectors.shape
        self.device = torch.device(device)
        self._vectors = torch.from_numpy(np.ascontiguousarray(vectors))
        self._query_rows = query_rows
        self._vector_rows = vector_rows

    def search(self, queries: NDArray[np.float32], k: int) -> Neighbors:
        """See :meth:`NeighborIndex.search`."""
        self.check_search(queries, k)
        indices = np.empty((len(queries), k), dtype=np.int64)
        similarities = np.empty((len(queries), k), dtype=np.float32)
        for start in range(0, len(queries), self._query_rows):
            block = slice(start, start + self._query_rows)
            found = self._search_block(torch.from_numpy(np.ascontiguousarray(queries[block])).to(self.device), k)
            similarities[block], indices[block] = (part.cpu().numpy() for part in found)
        return Neighbors(indices, similarities)

    def _search_block(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(similarities, positions), ``(b, k)`` each, of b queries ``(b, d)``."""
        best = torch.empty((len(queries), 0), device=self.device)
        places = torch.empty((len(queries), 0), dtype=torch.int64, device=self.device)
        for start in range(0, self.size, self._vector_rows):
            block = self._vectors[start : start + self._vector_rows].to(self.device)
            similarities = queries @ block.T  # (b, rows)
            if best.shape[1] < k:
                worst = similarities.topk(min(k, similarities.shape[1]), dim=1).values[:, -1:]
                reaching = _most(similarities >= worst)  # more than k where several are equal to the k-th
            else:
                reaching = _most(similarities > best[:, -1:])  # an equal one comes later and loses
            if reaching:
                values, rows = similarities.topk(reaching, dim=1)
                best, places = _merged(torch.cat([best, values], 1), torch.cat([places, rows + start], 1), k)
        return best, places

    def save(self, path: Path) -> None:
        """Write the vectors as safetensors."""
        with atomic_path(path) as temporary:
            save_file({"vectors": self._vectors}, temporary, metadata={"dataflex": json.dumps(self.describe())})

    @classmethod
    def load(cls, path: Path, *, device: str = "cpu") -> ExactIndex:
        """Read what :meth:`save` wrote.

        Raises:
            StoreError: The file is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as opened:
                vectors = opened.get_tensor("vectors").numpy()
        except (SafetensorError, OSError) as error:
            raise StoreError(f"{path} holds no index: {error}", hint="build the index again") from error
        return cls(vectors, device=device)


def _most(reached: Tensor) -> int:
    """The most true elements of any row ``(b, rows)``."""
    return int(reached.sum(dim=1).max())


def _merged(values: Tensor, places: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row, largest value first, equal values by place."""
    by_place = places.argsort(dim=1)
    values, places = values.gather(1, by_place), places.gather(1, by_place)
    by_value = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    return values.gather(1, by_value), places.gather(1, by_value)
