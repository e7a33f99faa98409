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

MODEL, ENCODER = "a672150fb4f99d7c", "53aa51172d142c89"
"""Digests of the weights that published results are of: SmolLM2-135M-Instruct as examples/quickstart/fetch_model.py
makes it, and all-MiniLM-L6-v2. Under these names results are found where the weights are not at hand."""


@dataclass(frozen=True)
class Protocol:
    """One way to train and to test.

    Attributes:
        sizes: Rows of the pools.
        rank: Of the LoRA adapter, on every linear layer.
        learning_rate: Peak of the cosine.
        batch: Rows of a step.
        warmup_step: Steps on random rows before the selection.
        update_step: Steps on the selection, each row once, where a run goes on with it.
        steps: Steps of a new adapter on the choice, whatever its size.
        max_new_tokens: Longest answer, in the reward and in the test; None: the task's own.
    """

    sizes: Sizes = field(default_factory=Sizes)
    rank: int = 8
    learning_rate: float = 1e-3
    batch: int = 2
    warmup_step: int = 12
    update_step: int = 12
    steps: int = 36
    max_new_tokens: int | None = None

    def chosen(self, rows: int, budget: float | None) -> int:
        """Rows of a selection: a share of the pool, or without one those of the steps that a run goes on for."""
        return self.update_step * self.batch if budget is None else round(budget * rows)


METRIC: dict[str, Any] = {"metric": "exact_match"}
"""The reward and the test: 1 for the reference's words, 0 for anything else."""
TEMPLATE, CUTOFF = "chatml", 96


def digest(facts: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits of JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def pool_facts(protocol: Protocol, pool: Pool, model: str, task: str) -> dict[str, Any]:
    """Everything that what the methods of a pool share depends on, but the code."""
    return {"protocol": asdict(protocol), "pool": asdict(pool), "model": model, "task": task}


@lru_cache(maxsize=4)
def weights_digest(folder: Path) -> str:
    """Digest of a model's weights."""
    with (folder / "model.safetensors").open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
