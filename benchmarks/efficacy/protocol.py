"""What every cell of the table has in common: model, adapter, steps, and the metric."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .pools import Pool, Sizes


@dataclass(frozen=True)
class Protocol:
    """One way to train and to test.

    Attributes:
        sizes: Rows of the pools.
        rank: Of the LoRA adapter, on every linear layer.
        learning_rate: Peak of the cosine.
        batch: Rows of a step.
        warmup_step: Steps on random rows before the selection.
        update_step: Steps on the selection, each row once.
        max_new_tokens: Longest answer, in the reward and in the test.
    """

    sizes: Sizes = field(default_factory=Sizes)
    rank: int = 8
    learning_rate: float = 1e-3
    batch: int = 2
    warmup_step: int = 12
    update_step: int = 12
    max_new_tokens: int = 14

    @property
    def chosen(self) -> int:
        """Rows of a selection."""
        return self.update_step * self.batch


METRIC: dict[str, Any] = {"metric": "exact_match"}
"""The reward and the test: 1 for the reference's words, 0 for anything else."""
TEMPLATE, CUTOFF = "chatml", 96
EPOCHS = 3
"""Passes over the choice where a new adapter is trained on it."""


def cell_key(protocol: Protocol, pool: Pool, model: Path, method: Mapping[str, Any]) -> str:
    """Digest of everything that a cell's outcome depends on, but the code."""
    facts = {"protocol": asdict(protocol), "pool": asdict(pool), "model": weights_digest(model), "method": method}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache(maxsize=2)
def weights_digest(model: Path) -> str:
    """Digest of a model's weights."""
    with (model / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
