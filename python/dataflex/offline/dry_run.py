"""What a selection would cost, from a few of its own batches.

A part of the plan (training gradients, say) splits into batches of b rows padded to t tokens. Three of them, spread
over the lengths that occur, are computed, and the time of a batch is fitted as

    seconds = alpha b + beta b t,        alpha, beta >= 0,

with equal relative weight: alpha holds what is done once a row (Adam normalisation, projection), beta what is done once
a padded token. The sum over all batches, what comes once (the check of the batched rules) and the writes of the shards
make the prediction.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataflex.gradients.store import FeatureStore
from dataflex.models.model import undisturbed
from dataflex.selectors.base import SelectionContext, Selector
from dataflex.selectors.plan import PlannedPart
from dataflex.utils.memory import peak_memory

TIMED_BATCHES = 3
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds on the clock and of this process's CPUs."""

    wall: float
    cpu: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __str__(self) -> str:
        return f"{self.wall:.1f} s ({self.cpu:.1f} s of CPU)"


@dataclass(frozen=True, slots=True)
class PartEstimate:
    """Prediction for one part.

    Attributes:
        name: What is computed.
        rows: n.
        batches: Batches that they are computed in.
        cost: Predicted time of all of them.
        store_bytes: Size of the stored values.
    """

    name: str
    rows: int
    batches: int
    cost: Cost
    store_bytes: int

    def line(self) -> str:
        """The prediction as text."""
        rate = self.rows / self.cost.wall
        return f"{self.name}: {self.rows:,} rows in {self.batches:,} batches, {rate:.2f} rows/s, {self.cost}"


@dataclass(frozen=True, slots=True)
class DryRun:
    """Prediction for a selection.

    Attributes:
        parts: What was timed.
        counts: What is only counted.
        peak_memory: Largest memory of the process up to now, in bytes; of the GPU, if the model is there.
        notes: What else the selection says beforehand.
    """

    parts: Sequence[PartEstimate]
    counts: Mapping[str, int]
    peak_memory: int
    notes: Sequence[str] = ()

    @property
    def total(self) -> Cost:
        """Predicted time of everything that was timed."""
        return sum((part.cost for part in self.parts), Cost(0.0, 0.0))

    @property
    def store_bytes(self) -> int:
        """Size of all stored values."""
        return sum(part.store_bytes for part in self.parts)

    def lines(self) -> list[str]:
        """The prediction as text."""
        return [
            *self.notes,
            *(part.line() for part in self.parts),
            *(f"{name}: {count:,} (not timed)" for name, count in self.counts.items()),
            f"predicted time: {self.total}",
            f"peak memory: {self.peak_memory / MIB:,.0f} MiB",
            f"stored on disk: {self.store_bytes / MIB:,.1f} MiB",
        ]


def dry_run(selector: Selector[Any], context: SelectionContext) -> DryRun:
    """Time a few batches of a selection; nothing is kept.

    Args:
        selector: The selector, checked.
        context: The context that it would select with.
    """
    plan = selector.plan(context)
    parts = [_estimate(part, context) for part in plan.parts]
    return DryRun(parts, plan.counts, peak_memory(next(context.model.parameters()).device), plan.notes)


def _estimate(part: PlannedPart, context: SelectionContext) -> PartEstimate:
    context.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.output_dir, prefix="dry-run-") as folder, undisturbed(context.model):
        store = part.open_store(Path(folder)) if part.open_store else None
        once = _timed(part.prepare)
        batches = part.batches()
        shapes = [(len(batch), len(batch) * max(part.lengths[row] for row in batch)) for batch in batches]
        chosen = spread(shapes, TIMED_BATCHES)
        costs = [_timed(lambda batch=batches[place]: part.compute(batch)) for place in chosen]  # type: ignore[misc]
        timed = [shapes[place] for place in chosen]
        spent = Cost(
            predict(timed, [cost.wall for cost in costs], shapes), predict(timed, [cost.cpu for cost in costs], shapes)
        )
        total = once + spent + (_writes(store) if store else Cost(0.0, 0.0))
        return PartEstimate(part.name, len(part.lengths), len(batches), total, store.num_bytes if store else 0)


def _writes(store: FeatureStore) -> Cost:
    """The time of writing all shards, from one."""
    start, stop = store.shards[0]
    once = _timed(lambda: store.write(start, torch.ones((stop - start, store.dim))))
    return Cost(once.wall * len(store.shards), once.cpu * len(store.shards))


def spread(shapes: Sequence[tuple[int, int]], count: int) -> list[int]:
    """Positions of ``count`` batches (or all) from that of the shortest rows to that of the longest.

    Args:
        shapes: (rows, padded tokens) of each batch.
        count: How many.
    """
    order = sorted(range(len(shapes)), key=lambda place: (shapes[place][1] / shapes[place][0], shapes[place][1]))
    places = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [order[place] for place in places]


def predict(timed: Sequence[tuple[int, int]], seconds: Sequence[float], shapes: Sequence[tuple[int, int]]) -> float:
    """Seconds of all batches from those of a few.

    Args:
        timed: (rows, padded tokens) of the timed batches.
        seconds: Their times.
        shapes: (rows, padded tokens) of all batches.
    """
    # Divided by the measured time, every batch has the same weight: the right-hand side is all ones.
    scaled = np.array(timed, dtype=float) / np.maximum(np.array(seconds), 1e-9)[:, None]
    candidates = []
    for kept in ([0, 1], [0], [1]):  # at most one of two coefficients can be clamped to zero
        solution = np.zeros(2)
        solution[kept] = np.linalg.lstsq(scaled[:, kept], np.ones(len(scaled)), rcond=None)[0]
        if (solution >= 0).all():
            candidates.append((float(np.square(scaled @ solution - 1).sum()), tuple(solution)))
    _, best = min(candidates)
    return float((np.array(shapes, dtype=float) @ np.array(best)).sum())


def _timed(action: Callable[[], Any]) -> Cost:
    _synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    _synchronize()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
