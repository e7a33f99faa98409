"""What becomes of the gradients of items that are computed together, while they stream by in blocks of parameters.

Projected features keep nothing but the sums: b x k numbers, whatever p is. That holds for raw gradients as well, whose
fixed-point grid is found from their largest values: each row has a grid of its own in every *section* (a parameter, or
2^17 values of a larger one, :func:`dataflex.gradients.slots.section_rows`), and a section is there as a whole when its
grid is needed. The sections' integer sums are added exactly
(:mod:`dataflex.projection.kernels.binned`), so that neither their order nor the batch changes a bit. Other ways were
left: one grid a row needs the whole row, b x p, or a second backward pass; one a parameter needs a second pass over the
blocks of a large one. Finer grids cost nothing but the additions, and lose less where parameters differ in scale.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Protocol

import torch
from torch import Tensor

from dataflex.projection.kernels.fixed_point import shares_grid
from dataflex.projection.projector import AdamMoments, Projector

WAITING_VALUES = {"cpu": 1 << 20, "cuda": 1 << 24}
"""Values of blocks (b x n) that are handed to a kernel together, about: 4 MiB stay in a processor's cache; on a GPU,
where the way to a kernel counts for more, 64 MiB. A larger block goes alone."""


Rates = tuple[tuple[int, float], ...]
"""``(end, rate over mean rate)`` of consecutive runs of parameters; empty: 1 for all."""


class Collector(Protocol):
    """Takes the gradients of g items that are computed together."""

    def add(self, block: Tensor, offset: int) -> None:
        """Take one block.

        Args:
            block: ``(g, n)``, float32 or wider, on the model's device; blocks come in any order, every parameter once.
            offset: Parameter index of the first column; a block is made of whole sections of one parameter.
        """

    def result(self) -> Tensor:
        """What came of them, ``(g, ...)``, once all blocks are there."""


class WholeRows:
    """Collects the gradients themselves.

    Args:
        values: ``(g, p)`` float32, which they are written into, every value once.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values

    def add(self, block: Tensor, offset: int) -> None:
        """Copy the block to its place."""
        self._values[:, offset : offset + block.shape[1]] = block

    def result(self) -> Tensor:
        """The rows."""
        return self._values


class RowMemory:
    """Memory for the gradients of items that are computed together, which those of the next items are written into.

    Items that turn out to be computed one by one have memory of their own each.

    Args:
        num_parameters: p.
        device: Where it lies.
    """

    def __init__(self, num_parameters: int, device: torch.device) -> None:
        self._values = torch.empty((0, num_parameters), device=device)
        self._taken = 0

    def take(self, count: int) -> WholeRows:
        """A collector of ``count`` items, beside those that were taken since :meth:`clear`."""
        start, stop = self._taken, self._taken + count
        if stop <= len(self._values):
            rows = self._values[start:stop]
        else:
            rows = self._values.new_empty((count, self._values.shape[1]))
            if start == 0:
                self._values = rows
        self._taken = stop
        return WholeRows(rows)

    def clear(self) -> None:
        """Nobody needs what was collected any more."""
        self._taken = 0


class AtRates:
    """Scales raw gradients by the learning rates of their parameters: the step of plain gradient descent.

    Args:
        taker: Takes the scaled gradients.
        rates: Rates of all p parameters.
    """

    def __init__(self, taker: Collector, rates: Rates) -> None:
        self._taker = taker
        self._rates = rates

    def add(self, block: Tensor, offset: int) -> None:
        """Scale a block, whose parameter has one rate, and hand it on."""
        _, rate = self._rates[bisect_right(self._rates, offset, key=itemgetter(0))]
        self._taker.add(block * rate, offset)

    def result(self) -> Tensor:
        """What came of the scaled gradients."""
        return self._taker.result()


def at_rates(collector: Callable[[int], Collector], rates: Rates) -> Callable[[int], Collector]:
    """What makes collectors of gradients at their rates."""
    return (lambda rows: AtRates(collector(rows), rates)) if rates else collector


class Gathering:
    """Blocks that wait until there are enough of them for one call of a kernel.

    A model has hundreds of small blocks (LoRA: two a linear layer), and the way to a kernel takes as long as it does.

    Args:
        take: Takes blocks with their offsets.
        device: Of the blocks.
    """

    def __init__(self, take: Callable[[list[tuple[Tensor, int]]], None], device: torch.device) -> None:
        self._take = take
        self._most = WAITING_VALUES.get(device.type, WAITING_VALUES["cpu"])
        self._blocks: list[tuple[Tensor, int]] = []
        self._values = 0

    def add(self, block: Tensor, offset: int) -> None:
        """One more block."""
        self._blocks.append((block, offset))
        self._values += block.numel()
        if self._values >= self._most:
            self.flush()

    def flush(self) -> None:
        """Hand on what is waiting."""
        blocks, self._blocks, self._values = self._blocks, [], 0
        if blocks:
            self._take(blocks)


class ProjectedFeatures:
    """Projects gradients, Adam-normalised or as they are: ``(g, k)`` float32.

    Args:
        rows: g.
        device: Of the blocks.
        projector: P.
        adam: Moments of all p parameters; None: raw gradients.
        sections: Where the model's sections start (:func:`dataflex.gradients.slots.section_starts`).
    """

    def __init__(
        self,
        rows: int,
        device: torch.device,
        projector: Projector,
        adam: AdamMoments | None,
        sections: Sequence[int],
    ) -> None:
        self._accumulator = projector.accumulator(rows, device=device)
        self._adam = adam
        self._sections = sections
        self._gathering = Gathering(self._project, device)

    def add(self, block: Tensor, offset: int) -> None:
        """Normalise, project and add the block, section by section where each has grids of its own."""
        self._gathering.add(block.float(), offset)

    def _project(self, blocks: list[tuple[Tensor, int]]) -> None:
        for block, offset in joined(blocks):
            for start, stop in self._parts(offset, offset + block.shape[1]):
                moments = None if self._adam is None else self._adam.slice(start, stop)
                self._accumulator.add(block[:, start - offset : stop - offset], start, moments)

    def result(self) -> Tensor:
        """The features."""
        self._gathering.flush()
        return self._accumulator.features()

    def _parts(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        if shares_grid(self._adam):
            return iter([(start, stop)])
        first, last = bisect_right(self._sections, start), bisect_left(self._sections, stop)
        return pairwise([start, *self._sections[first:last], stop])


def joined(blocks: list[tuple[Tensor, int]]) -> Iterator[tuple[Tensor, int]]:
    """Blocks that follow one another in the parameter index as one, in its order.

    Args:
        blocks: Each ``(g, n)`` with its offset; none overlap.
    """
    run: list[Tensor] = []
    start = end = 0
    for block, offset in sorted(blocks, key=itemgetter(1)):
        if run and offset != end:
            yield torch.cat(run, dim=1) if len(run) > 1 else run[0], start
            run = []
        if not run:
            start = offset
        run.append(block)
        end = offset + block.shape[1]
    if run:
        yield torch.cat(run, dim=1) if len(run) > 1 else run[0], start
