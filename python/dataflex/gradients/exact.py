"""Exact scores: cosines of whole gradients in R^p, in one streaming pass, without projection and feature store.

With mean aggregation the score of candidate i is one inner product,

    s_i = <u_i, q> / |u_i|,      q = (1 / |T|) sum_{j in T} g_j / |g_j|,

with its (Adam-normalised) gradient u_i and the gradients g_j of the targets; with ``task_max`` there is one such vector
q a task. Each q is made once and held, p numbers of float32; then the candidates' blocks stream by, and of a row only
<u_i, q> and |u_i|^2 are kept, float64 sums (:mod:`dataflex.projection.dots`) in shards of a store that survive a kill.

The sums of unit vectors are whole numbers, multiples of 2^-52 (of larger steps beyond 1023 targets), so that no order
of batches or ranks changes a bit of q; they are rounded to float32 once. A batch of raw target gradients is held, b x p
of at most :data:`BLOCK_VALUES` or one target: norms come first. The same rows give a *sketch* of each target, its
projection to :data:`SKETCH_DIM` numbers, from which the agreement of any halves of the targets follows
(:mod:`dataflex.gradients.reliability`) within 1 / sqrt(4096) = 0.016.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataflex.gradients.collectors import Gathering, RowMemory
from dataflex.gradients.context import GradientContext
from dataflex.gradients.features import GradientFeatures
from dataflex.gradients.filling import fill_apart
from dataflex.gradients.layout import Layout
from dataflex.gradients.similarity import Scores
from dataflex.gradients.slots import parameter_slots
from dataflex.gradients.store import ScoreStore
from dataflex.models.model import trainable_parameters, undisturbed
from dataflex.projection.dots import DotAccumulator
from dataflex.projection.projector import AdamMoments, Projector
from dataflex.utils.progress import progress_bar

EXACT_VERSION = 3
"""Grows when the same inputs give other sums."""
BLOCK_VALUES = 1 << 25
"""Most values (b x p) of raw target gradients that are held at once, 128 MiB; a single target may be larger."""
SKETCH_DIM = 4096
_COLUMNS = 1 << 17
"""Columns that are float64 at once: a megabyte stays in a processor's cache."""


def sketch_projector(seed: int) -> Projector:
    """The projection of the targets' sketches."""
    return Projector(SKETCH_DIM, "sjlt", seed)


@dataclass(frozen=True, slots=True)
class ExactTargets:
    """The evaluation side.

    Attributes:
        vectors: ``(d, p)`` float32 on the model's device: the mean of each direction's unit gradients; 0 for one that
            has no finite target.
        counts: Per direction the targets that it is the mean of: all finite ones; those of zero add nothing.
        squares: ``(q,)`` float64: each target's squared norm, not finite where its gradient is not.
        sketches: ``(items, SKETCH_DIM)`` float32: the projected gradients of the items that the targets are made of.
    """

    vectors: Tensor
    counts: list[int]
    squares: NDArray[np.float64]
    sketches: Tensor


def exact_targets(
    context: GradientContext,
    features: GradientFeatures,
    factors: Sequence[Sequence[float]],
    places: Sequence[int],
    *,
    seed: int,
    description: str,
) -> ExactTargets:
    """Directions of q targets in R^p; the ranks share the work and need see no folder in common.

    Args:
        context: Model and processes as they are now.
        features: Computes the raw gradients of the items that the targets are made of, target after target.
        factors: Per target the factors of its items: their gradients, times these, add up to its own.
        places: The number of each target's direction.
        seed: Seed of the sketches.
        description: For the progress bar.
    """
    items = iter(range(sum(map(len, factors))))
    groups = [[next(items) for _ in own] for own in factors]
    features.prepare()
    batches = target_batches(context, features, groups)
    numbers = {group[0]: number for number, group in enumerate(groups)}
    work = _target_work(context, features, factors, places, numbers, seed)
    ranks = context.ranks
    squares, sketches = ranks.together(lambda: work.of(ranks.share(batches), description))
    order = [[group for batch in batches[rank :: ranks.count] for group in batch] for rank in range(ranks.count)]
    found_squares = np.empty(len(groups))
    for own, values in zip(order, ranks.gather_tensors(squares), strict=True):
        found_squares[[numbers[group[0]] for group in own]] = values.numpy()
    found_sketches = torch.empty((sum(map(len, groups)), SKETCH_DIM))
    for own, rows in zip(order, ranks.gather_tensors(sketches), strict=True):
        found_sketches[[item for group in own for item in group]] = rows
    ranks.add_up(work.sums.values)
    counted = Counter(place for place, square in zip(places, found_squares, strict=True) if math.isfinite(square))
    counts = [counted[place] for place in range(len(work.sums.values))]
    return ExactTargets(work.sums.means(counts), counts, found_squares, found_sketches)


def target_batches(
    context: GradientContext, features: GradientFeatures, groups: list[list[int]]
) -> list[list[list[int]]]:
    """Targets, each a group of items, that are computed together."""
    return features.batches_of(groups, most_items=max(1, BLOCK_VALUES // _num_parameters(context)))


def target_pass(context: GradientContext, features: GradientFeatures, seed: int) -> Callable[[Sequence[int]], None]:
    """What does for targets of one item each the work of :func:`exact_targets`, to be timed."""
    count = len(features)
    work = _target_work(context, features, [[1.0]] * count, [0] * count, {item: item for item in range(count)}, seed)

    def run(items: Sequence[int]) -> None:
        work.of_batch([[item] for item in items])

    return run


@dataclass(frozen=True, slots=True)
class _TargetWork:
    """What a rank does for its share of the targets."""

    context: GradientContext
    features: GradientFeatures
    factors: Sequence[Sequence[float]]
    places: Sequence[int]
    numbers: Mapping[int, int]
    sums: UnitSums
    sketch: Projector
    memory: RowMemory

    def of(self, batches: Sequence[list[list[int]]], description: str) -> tuple[Tensor, Tensor]:
        """Add the targets of some batches; returns their squared norms ``(q,)`` and sketches ``(items, k)``."""
        squares: list[float] = []
        sketches = [torch.empty((0, SKETCH_DIM))]
        total = sum(map(len, batches))
        main = self.context.ranks.is_main
        with (
            undisturbed(self.context.model),
            progress_bar(total, description, unit="target", disable=not main) as bar,
        ):
            for batch in batches:
                own, sketch = self.of_batch(batch)
                squares += own
                sketches.append(sketch)
                bar.update(len(batch))
        return torch.tensor(squares, dtype=torch.float64), torch.cat(sketches)

    def of_batch(self, batch: list[list[int]]) -> tuple[list[float], Tensor]:
        """Add the targets of one batch; returns the same of it."""
        self.memory.clear()
        rows = self.features.collect([item for group in batch for item in group], self.memory.take)  # (items, p)
        squares = []
        start = 0
        for group in batch:
            number = self.numbers[group[0]]
            part = rows[start : start + len(group)]
            squares.append(self.sums.add(self.places[number], part, self.factors[number]))
            start += len(group)
        return squares, self.sketch.project(rows).cpu()


def _target_work(
    context: GradientContext,
    features: GradientFeatures,
    factors: Sequence[Sequence[float]],
    places: Sequence[int],
    numbers: Mapping[int, int],
    seed: int,
) -> _TargetWork:
    p, device = _num_parameters(context), _device(context)
    sums = UnitSums(max(places) + 1, p, len(numbers), device)
    return _TargetWork(context, features, factors, places, numbers, sums, sketch_projector(seed), RowMemory(p, device))


class UnitSums:
    """Sums of unit vectors, as whole numbers.

    Args:
        count: d, the sums.
        num_parameters: p.
        most: The most vectors that one of them can have.
        device: Where the vectors lie.
    """

    def __init__(self, count: int, num_parameters: int, most: int, device: torch.device) -> None:
        self._bits = min(52, 62 - math.ceil(math.log2(most + 1)))
        self.values = torch.zeros((count, num_parameters), dtype=torch.int64, device=device)  # times 2^bits

    def add(self, place: int, rows: Tensor, factors: Sequence[float]) -> float:
        """Add a vector of length one to a sum, unless it is zero or not finite.

        Args:
            place: Number of the sum.
            rows: ``(h, p)`` float32.
            factors: The h factors with which the rows add up to a vector that points the same way.

        Returns:
            The square of that vector's length.
        """

        def columns() -> Iterator[tuple[int, Tensor]]:
            for start in range(0, rows.shape[1], _COLUMNS):
                parts = (
                    row.double().mul_(factor)
                    for row, factor in zip(rows[:, start:][:, :_COLUMNS], factors, strict=True)
                )
                yield start, reduce(Tensor.add_, parts)

        square = float(sum(torch.linalg.vecdot(part, part) for _, part in columns()))
        if math.isfinite(square) and square > 0:
            scale = 2.0**self._bits / math.sqrt(square)
            for start, part in columns():
                self.values[place, start : start + len(part)] += part.mul_(scale).round_().long()
        return square

    def means(self, counts: Sequence[int]) -> Tensor:
        """``(d, p)`` float32: each sum over its count; 0 where that is 0."""
        found = torch.zeros(self.values.shape, device=self.values.device)
        for place, count in enumerate(counts):
            for start in range(0, self.values.shape[1], _COLUMNS):
                part = self.values[place, start : start + _COLUMNS].double()
                found[place, start : start + _COLUMNS] = part / (2.0**self._bits * max(count, 1))
        return found


class ExactRows:
    """Collects the square and the d inner products of each row: ``(g, 1 + d)`` float64, NaN for rows not finite.

    Args:
        rows: g.
        directions: ``(d, p)`` float32.
        extents: Where each parameter starts and stops in the parameter index.
        adam: Moments that normalise the gradients; None: raw gradients.
    """

    def __init__(
        self, rows: int, directions: Tensor, extents: Sequence[tuple[int, int]], adam: AdamMoments | None
    ) -> None:
        self._dots = DotAccumulator(directions, rows, extents, directions.device)
        self._gathering = Gathering(lambda blocks: self._dots.add_all(blocks, adam), directions.device)

    def add(self, block: Tensor, offset: int) -> None:
        """Add a block's products."""
        self._gathering.add(block.float(), offset)

    def result(self) -> Tensor:
        """The sums."""
        self._gathering.flush()
        found = self._dots.result()
        return torch.cat([found.squares[:, None], found.products], dim=1)


def exact_pass(
    context: GradientContext, features: GradientFeatures, directions: Tensor
) -> Callable[[Sequence[int]], Tensor]:
    """What maps the numbers of b rows to their square and inner products ``(b, 1 + d)`` float64.

    Args:
        context: The model as it is now.
        features: Computes the rows' gradients.
        directions: ``(d, p)`` float32 on the model's device.
    """
    extents = [(slot.offset, slot.offset + value.numel()) for value, slot in parameter_slots(context.model).items()]
    adam = features.adam
    return lambda rows: features.collect(rows, lambda count: ExactRows(count, directions, extents, adam))


def open_scores(directory: Path, facts: Mapping[str, Any], layout: Layout, directions: int) -> ScoreStore:
    """The store of n rows' squares and inner products, 8 (1 + d) bytes a row."""
    return ScoreStore(directory, facts, layout, 1 + directions)


def exact_sums(
    context: GradientContext,
    features: GradientFeatures,
    targets: ExactTargets,
    directory: Path,
    facts: Mapping[str, Any],
    *,
    save_rows: int,
    description: str,
) -> Tensor:
    """Squares and inner products of all rows, on every rank; shards that the same state left there are used.

    Args:
        context: Model and processes as they are now.
        features: Computes the rows' gradients.
        targets: What they are compared with.
        directory: Folder of the shards; the ranks need not see the same one.
        facts: What fixes the targets.
        save_rows: Most rows that a kill may lose, beside those of the batch that it comes in.
        description: For the progress bar.

    Returns:
        ``(n, 1 + d)`` float64; NaN for rows that are not finite.
    """
    whole = {
        "exact": EXACT_VERSION,
        **features.facts(),
        "batch_tokens": features.batch_tokens,
        "targets": dict(facts),
    }
    layout = features.layout()
    return fill_apart(
        lambda: open_scores(directory, whole, layout, len(targets.vectors)),
        context.model,
        exact_pass(context, features, targets.vectors),
        prepare=features.prepare,
        description=description,
        save_rows=save_rows,
        ranks=context.ranks,
    )


def cosines_of(sums: Tensor) -> Tensor:
    """``(n, d)`` float64 cosines times the directions' lengths, from :func:`exact_sums`; -inf for unusable rows."""
    squares, products = sums[:, :1], sums[:, 1:]
    norms = torch.from_numpy(np.sqrt(squares.numpy()))  # numpy rounds correctly; torch's vector library need not
    unusable = ~(squares > 0) | ~squares.isfinite()
    return (products / norms).masked_fill(unusable, float("-inf"))


def exact_scores(sums: Tensor) -> Scores:
    """Scores of all rows from :func:`exact_sums`: the largest of their cosines."""
    squares = sums[:, 0]
    finite = squares.isfinite()
    return Scores(
        cosines_of(sums).amax(dim=1).numpy(),
        (~finite).nonzero().flatten().tolist(),
        (squares == 0).nonzero().flatten().tolist(),
    )


def _num_parameters(context: GradientContext) -> int:
    return sum(parameter.numel() for _, parameter in trainable_parameters(context.model))


def _device(context: GradientContext) -> torch.device:
    return next(context.model.parameters()).device
