"""When samples are drawn at random and when a selector picks them.

One cycle is ``warmup_step`` steps on random samples, then ``update_times`` phases of ``update_step`` steps, each on
samples that were selected just before it. The run is ceil(num_train_epochs * cycle) steps: the cycle over and over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataflex.config.values import whole_steps
from dataflex.errors import TrainingError


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps ``start`` to ``stop`` (excluded); ``round`` numbers the selection before them, None for random samples."""

    start: int
    stop: int
    round: int | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a run selects: total steps = warmup_step + update_step * update_times.

    Attributes:
        warmup_step: Steps on random samples before the first selection.
        update_step: Steps on each selection.
        update_times: Number of selections.

    Raises:
        TrainingError: A number is negative, or the schedule has no steps.
    """

    warmup_step: int
    update_step: int = 0
    update_times: int = 0

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be at least 0, got {value}"
            for name, value in (
                ("warmup_step", self.warmup_step),
                ("update_step", self.update_step),
                ("update_times", self.update_times),
            )
            if value < 0
        ]
        if not problems and self.cycle_steps == 0:
            problems.append("the schedule has no steps: warmup_step + update_step * update_times = 0")
        if problems:
            raise TrainingError("; ".join(problems))

    @property
    def cycle_steps(self) -> int:
        """Steps of one cycle."""
        return self.warmup_step + self.update_step * self.update_times

    def total_steps(self, num_train_epochs: float = 1.0) -> int:
        """Steps of the run.

        Args:
            num_train_epochs: How often the schedule is gone through; a part of it is rounded up to whole steps.
        """
        return whole_steps(self.cycle_steps, num_train_epochs)

    def phases(self, num_train_epochs: float = 1.0) -> list[Phase]:
        """The phases of the run in order, the last one cut at the end; rounds count from 1 through all cycles.

        Args:
            num_train_epochs: How often the schedule is gone through.
        """
        lengths = [(self.warmup_step, False)] + [(self.update_step, True)] * self.update_times
        total = self.total_steps(num_train_epochs)
        phases: list[Phase] = []
        start = rounds = 0
        while start < total:
            for length, selected in lengths:
                stop = min(start + length, total)
                if stop == start:
                    continue
                rounds += selected
                phases.append(Phase(start, stop, rounds if selected else None))
                start = stop
        return phases


def longest_selection(phases: Sequence[Phase]) -> int:
    """Steps of the longest phase on selected samples."""
    return max((phase.stop - phase.start for phase in phases if phase.round), default=0)


def selected_samples(phases: Sequence[Phase], global_batch: int, num_candidates: int) -> int:
    """Candidates that the selections of all phases ask for together; one asks for no more than there are."""
    return sum(min((phase.stop - phase.start) * global_batch, num_candidates) for phase in phases if phase.round)


def random_order(
    num_samples: int, start: int, count: int, *, seed: int, shuffle: bool = True, stream: Sequence[int] = (0,)
) -> NDArray[np.int64]:
    """Entries ``start`` to ``start + count`` of an endless sequence of permutations of the dataset, or of a part of it.

    The sequence depends on the seed alone, so that a resumed run needs no position but the number of samples drawn.

    Args:
        num_samples: n.
        start: Samples drawn so far.
        count: Samples to draw, at least 1.
        seed: Seed of the run.
        shuffle: False for the dataset's own order.
        stream: Numbers the sequences of one seed.

    Returns:
        ``(count,)`` int64 positions.
    """
    parts = []
    for epoch in range(start // num_samples, (start + count - 1) // num_samples + 1):
        order = (
            np.random.default_rng([seed, *stream, epoch]).permutation(num_samples)
            if shuffle
            else np.arange(num_samples)
        )
        low = max(start - epoch * num_samples, 0)
        high = min(start + count - epoch * num_samples, num_samples)
        parts.append(order[low:high])
    return np.concatenate(parts).astype(np.int64)


def selected_order(indices: NDArray[np.int64], count: int, *, seed: int, round_number: int) -> NDArray[np.int64]:
    """The order in which a phase trains on its selection: shuffled by seed, repeated where it is shorter.

    Args:
        indices: Selected positions.
        count: Samples that the phase trains on.
        seed: Seed of the run.
        round_number: The selection's round.

    Returns:
        ``(count,)`` int64 positions.
    """
    repeats = math.ceil(count / len(indices))
    stream = np.random.default_rng([seed, 1, round_number])
    return np.concatenate([stream.permutation(indices) for _ in range(repeats)])[:count].astype(np.int64)
