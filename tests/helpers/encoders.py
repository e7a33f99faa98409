"""An encoder that needs no model, and a process that is killed while it embeds."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataflex.retrieval.embeddings.base import Encoder
from dataflex.retrieval.embeddings.cache import embed_texts


class WordEncoder(Encoder):
    """Counts words into hashed places: texts that share words are close. Remembers what it was asked for."""

    method: ClassVar[str] = "words"

    def __init__(self, dim: int = 64, version: int = 1, dies_at: int | None = None) -> None:
        self._dim = dim
        self.version = version
        self.dies_at = dies_at
        self.calls: list[list[str]] = []

    @property
    def dim(self) -> int:
        return self._dim

    def identity(self) -> dict[str, Any]:
        return {"method": self.method, "dim": self._dim, "version": self.version}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if len(self.calls) == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls.append(list(texts))
        vectors = np.zeros((len(texts), self._dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                vectors[row, hashlib.sha256(word.encode()).digest()[0] % self._dim] += 1
        return vectors


def unit_vectors(n: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    """Random directions, ``(n, dim)``."""
    draw = np.random.default_rng(seed).standard_normal((n, dim))
    return (draw / np.linalg.norm(draw, axis=1, keepdims=True)).astype(np.float32)


def clustered_vectors(n: int, dim: int = 16, seed: int = 0) -> NDArray[np.float32]:
    """Directions around sqrt(n) others, ``(n, dim)``."""
    stream = np.random.default_rng(seed)
    centres = unit_vectors(int(n**0.5), dim, seed=seed + 1)
    draw = centres[stream.integers(len(centres), size=n)] + 0.5 / dim**0.5 * stream.standard_normal((n, dim))
    return (draw / np.linalg.norm(draw, axis=1, keepdims=True)).astype(np.float32)


def texts(count: int) -> list[str]:
    """Different texts of different lengths."""
    return [" ".join(f"word{number * step}" for step in range(1, 2 + number % 7)) for number in range(1, count + 1)]


def main(cache_dir: str, dies_at: int) -> None:
    """Embed 40 texts in shards of 8; the process dies at its ``dies_at``-th call of the encoder."""
    embed_texts(texts(40), WordEncoder(dies_at=dies_at), Path(cache_dir), shard_rows=8)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
