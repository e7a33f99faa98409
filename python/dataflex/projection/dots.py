"""Exact inner products of b gradients with d directions, whose blocks stream by: nothing is projected, nothing stored.

::

    dots = DotAccumulator(directions, rows=b, parameters=extents)   # (d, p); where each parameter starts and stops
    for offset, block, moments in blocks:                           # in order inside a parameter, which come in any
        dots.add(block, offset, moments)
    products, squares, finite = dots.result()                       # <u, q_j>, |u|^2

All sums are in float64 in an order that depends on the parameters' sizes alone (:mod:`dataflex.projection.kernels.dots`
inside a parameter; the parameters' sums are added in a tree over their index), so that batch, block split, order of
arrival, threads, instruction set and device change no bit.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.projection.adam import AdamMoments
from dataflex.projection.kernels.block import normalisation
from dataflex.projection.kernels.dots import PIECE, dots_accumulate
from dataflex.projection.kinds.base import check_block, check_settings

__all__ = ["PIECE", "DotAccumulator", "Dots", "whole_pieces"]


class Dots(NamedTuple):
    """What :meth:`DotAccumulator.result` gives.

    Attributes:
        products: ``(b, d)`` float64, <u, q_j>; NaN where the row is not finite.
        squares: ``(b,)`` float64, |u|^2; NaN where the row is not finite.
        finite: ``(b,)`` bool, whether all values of the row and their denominators are.
    """

    products: Tensor
    squares: Tensor
    finite: Tensor


class _Part(NamedTuple):
    """Consecutive columns of one parameter: ``(b, n)`` and their moments."""

    block: Tensor
    adam: AdamMoments | None

    def columns(self, start: int, stop: int) -> _Part:
        return _Part(self.block[:, start:stop], None if self.adam is None else self.adam.slice(start, stop))

    def followed_by(self, other: _Part) -> _Part:
        block = torch.cat([self.block, other.block], dim=1)
        if self.adam is None or other.adam is None:
            return _Part(block, None)
        return _Part(block, self.adam.followed_by(other.adam))

    def copied(self) -> _Part:
        """The same columns in memory of their own, so that the block they are a view of can go."""
        return _Part(self.block.clone(), self.adam)


class DotAccumulator:
    """Inner products of b rows in the making, fed with blocks of parameters.

    Parameters may come in any order; the columns of one in theirs, in blocks of any width (multiples of
    :data:`PIECE`, see :func:`whole_pieces`, need no copy of what is left over). Holds ``(parameters, b, 1 + d)``
    float64.

    Args:
        directions: ``(d, p)`` float32, d from 0; values of a row are contiguous. Read, never copied.
        rows: b.
        parameters: ``(start, stop)`` of every parameter in the parameter index, in its order; together 0 to p.
        device: Where blocks, moments and directions lie.

    Raises:
        ProjectionError: Directions or extents are not as above.
    """

    def __init__(
        self,
        directions: Tensor,
        rows: int,
        parameters: Sequence[tuple[int, int]],
        device: torch.device | str = "cpu",
    ) -> None:
        self.rows = rows
        self.device = torch.empty(0, device=device).device
        self._directions = directions.detach()
        self._parameters = list(parameters)
        _check_directions(self._directions, self.device)
        _check_extents(self._parameters, directions.shape[1])
        shape = (len(self._parameters), rows, 1 + directions.shape[0])
        self._sums = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self._not_finite = torch.zeros(rows, dtype=torch.uint8, device=self.device)
        self._starting = {start: (index, stop) for index, (start, stop) in enumerate(self._parameters)}
        self._added = [0] * len(self._parameters)  # columns of each parameter that have come
        self._begun: dict[int, _Part] = {}  # the columns of a piece that has come in part
        self._settings: tuple[object, ...] | None = None  # of the first block: (settings of its moments or None,)

    def add(self, block: Tensor, offset: int, adam: AdamMoments | None = None) -> None:
        """Add the gradients of parameters ``offset`` to ``offset + n``.

        Args:
            block: ``(b, n)`` float32, bfloat16 or float16; rows may be strided, values of a row are contiguous.
            offset: Parameter index of the first column.
            adam: Moments of those n parameters: the values are normalised first.

        Raises:
            ProjectionError: Shape, dtype, layout, device or moments do not fit, a parameter's columns do not come in
                order, or its learning rate changes inside a piece.
        """
        check_block(block, offset, adam, rows=self.rows, device=self.device)
        self._check_settings(adam)
        if offset + block.shape[1] > self._directions.shape[1]:
            raise ProjectionError(
                f"parameters {offset} to {offset + block.shape[1]} do not fit directions of "
                f"{self._directions.shape[1]} parameters"
            )
        whole = _Part(block.detach(), adam)
        for index, start, stop in self._crossed(offset, offset + block.shape[1]):
            self._add(index, start, whole.columns(start - offset, stop - offset))

    def add_all(self, blocks: Sequence[tuple[Tensor, int]], adam: AdamMoments | None = None) -> None:
        """As :meth:`add` for block after block, in few calls of the kernel where these are whole parameters.

        Args:
            blocks: Each block with its offset.
            adam: Moments of all p parameters.

        Raises:
            ProjectionError: As :meth:`add`.
        """
        together: dict[float, list[tuple[Tensor, int, int]]] = {}
        for block, offset in blocks:
            stop = offset + block.shape[1]
            number, end = self._starting.get(offset, (0, 0))
            rate = 1.0 if adam is None else adam.common_rate(offset, stop)
            if end != stop or rate is None or self._added[number]:
                self.add(block, offset, None if adam is None else adam.slice(offset, stop))
                continue
            check_block(block, offset, None, rows=self.rows, device=self.device)
            self._added[number] = stop - offset
            together.setdefault(rate, []).append((block.detach(), offset, number))
        for rate, some in together.items():
            self._check_settings(adam)
            grads, offsets, numbers = map(list, zip(*some, strict=True))
            moments = normalisation(None if adam is None else adam.at_rate(rate))
            dots_accumulate(grads, offsets, numbers, *moments, self._directions, self._sums, self._not_finite)

    def _check_settings(self, adam: AdamMoments | None) -> None:
        """Refuse moments of other settings than those of the first block."""
        settings = None if adam is None else adam.settings
        if self._settings is not None:
            check_settings(settings, self._settings[0])
        self._settings = (settings,)

    def result(self) -> Dots:
        """Inner products, squares and which rows are finite.

        Raises:
            ProjectionError: A parameter has not come, or not all of it.
        """
        sizes = [stop - start for start, stop in self._parameters]
        missing = [index for index, size in enumerate(sizes) if self._added[index] < size]
        if missing:
            first = missing[0]
            raise ProjectionError(
                f"inner products need every parameter: {len(missing)} of {len(sizes)} are not complete; the first, "
                f"number {first}, has {self._added[first]} of {sizes[first]} values"
            )
        broken = self._not_finite.bool()
        total = _added_in_a_tree(self._sums).masked_fill(broken[:, None], math.nan)  # (b, 1 + d)
        return Dots(total[:, 1:], total[:, 0], ~broken)

    def _crossed(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """``(number, start, stop)`` of the parts of parameters in a range of the parameter index."""
        index = max(bisect_right(self._parameters, start, key=itemgetter(0)) - 1, 0)
        while start < stop:
            end = min(stop, self._parameters[index][1])
            if start < end:
                yield index, start, end
            start = end
            index += 1

    def _add(self, index: int, start: int, part: _Part) -> None:
        """Add columns of one parameter: what completes a piece, whole pieces, and keep the rest."""
        first, end = self._parameters[index]
        column, count = start - first, part.block.shape[1]
        if column != self._added[index]:
            raise ProjectionError(
                f"parameter number {index} must come in order: expected its column {self._added[index]}, got {column}"
            )
        self._added[index] = column + count
        head = min(-column % PIECE, count)
        if head:
            part, start = self._complete(index, start, part, head), start + head
        rest = 0 if column + count == end - first else part.block.shape[1] % PIECE
        whole = part.block.shape[1] - rest
        if whole:
            self._sum(index, start, part.columns(0, whole))
        if rest:
            self._begun[index] = part.columns(whole, whole + rest).copied()

    def _complete(self, index: int, start: int, part: _Part, head: int) -> _Part:
        """Add ``head`` columns to the piece that was begun; returns the columns after them."""
        joined = self._begun.pop(index).followed_by(part.columns(0, head))
        if joined.block.shape[1] == PIECE or start + head == self._parameters[index][1]:
            self._sum(index, start + head - joined.block.shape[1], joined)
        else:
            self._begun[index] = joined
        return part.columns(head, part.block.shape[1])

    def _sum(self, index: int, offset: int, part: _Part) -> None:
        """Add columns that start at a border of pieces."""
        runs = [(0, part.block.shape[1], None)] if part.adam is None else list(part.adam.runs())
        for start, stop, adam in runs:
            if start % PIECE:
                raise ProjectionError(
                    f"the learning rate changes inside parameter number {index}, at {offset + start}: "
                    "it may change only where a parameter starts"
                )
            directions = self._directions[:, offset + start : offset + stop]
            block = [part.block[:, start:stop]]
            dots_accumulate(block, [0], [index], *normalisation(adam), directions, self._sums, self._not_finite)


def whole_pieces(rows: int, width: int) -> int:
    """The largest number of rows of ``width`` values, at most ``rows``, that ends at a border of pieces.

    ``rows`` itself where no such number fits.
    """
    unit = PIECE // math.gcd(PIECE, width)
    return rows // unit * unit or rows


def _added_in_a_tree(sums: Tensor) -> Tensor:
    """The sum over the first dimension: neighbours are added until one is left."""
    if not len(sums):
        return sums.sum(dim=0)
    while len(sums) > 1:
        pairs = sums[0::2].clone()
        pairs[: len(sums) // 2] += sums[1::2]
        sums = pairs
    return sums[0]


def _check_directions(directions: Tensor, device: torch.device) -> None:
    problems = []
    if directions.ndim != 2 or directions.dtype != torch.float32:
        problems.append(f"must be float32 of shape (d, p), got {directions.dtype} {tuple(directions.shape)}")
    elif directions.numel() and directions.shape[1] > 1 and directions.stride(1) != 1:
        problems.append(f"values of a row must be contiguous, got strides {directions.stride()}: call .contiguous()")
    if directions.device != device:
        problems.append(f"must be on {device}, got {directions.device}")
    if problems:
        raise ProjectionError("directions: " + "; ".join(problems))


def _check_extents(parameters: Sequence[tuple[int, int]], count: int) -> None:
    end = 0
    for index, (start, stop) in enumerate(parameters):
        if start != end or stop < start:
            raise ProjectionError(f"parameter number {index} must start at {end}, got {start} to {stop}")
        end = stop
    if end != count:
        raise ProjectionError(f"the parameters end at {end}, the directions at {count}")
