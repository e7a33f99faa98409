"""Where the trainable parameters, or some coordinates of them, lie in the index that gradients stream by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dataflex.models.model import trainable_parameters
from dataflex.projection.dots import whole_pieces
from dataflex.projection.picks import Picks

Pick = Callable[[int, Sequence[int]], Picks | None]
"""Coordinates of a parameter that are wanted, by its place and shape (:meth:`ProjectionKind.picks`); None: all."""
Piece = Callable[[int, int], Tensor]
"""Maps a range of a parameter's first dimension to its gradients ``(b, stop - start, ...)``, float32 or wider."""
SECTION_VALUES = 1 << 17
"""Most values of a section, unless a single row of the parameter has more. LoRA matrices are whole up to this size."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a trainable parameter lies.

    Attributes:
        number: Its place among the parameters.
        name: Its name.
        offset: Parameter index of its first value.
        rows: Size of its first dimension.
        width: Values of each of these rows.
        section: Rows of a section (:func:`section_rows`).
        picks: Coordinates that it is made of; None: all.
    """

    number: int
    name: str
    offset: int
    rows: int
    width: int
    section: int
    picks: Picks | None = None

    @property
    def size(self) -> int:
        """Number of values."""
        return self.rows * self.width


def everything(number: int, shape: Sequence[int]) -> None:
    """All coordinates of every parameter."""
    del number, shape


def parameter_slots(model: nn.Module, pick: Pick = everything) -> dict[nn.Parameter, Slot]:
    """Where the trainable parameters, or those of their values that ``pick`` takes, lie in the parameter index."""
    slots: dict[nn.Parameter, Slot] = {}
    end = 0
    for number, (name, parameter) in enumerate(trainable_parameters(model)):
        picks = pick(number, parameter.shape)
        if picks is None:
            rows, width = len(parameter), row_width(parameter)
        else:
            picks = picks.to(parameter.device)
            rows, width = len(picks.rows), len(picks.columns)
        slots[parameter] = Slot(number, name, end, rows, width, section_rows(width), picks)
        end += rows * width
    return slots


def picked_values(slots: dict[nn.Parameter, Slot], gradients: Tensor) -> Tensor:
    """``(..., p')`` the values of the slots in gradients ``(..., p)`` of all parameters, as they are."""
    if not any(slot.picks for slot in slots.values()):
        return gradients
    parts = torch.split(gradients, [parameter.numel() for parameter in slots], dim=-1)
    return torch.cat(
        [
            part if slot.picks is None else slot.picks.of(part.reshape(*part.shape[:-1], *parameter.shape))
            for (parameter, slot), part in zip(slots.items(), parts, strict=True)
        ],
        dim=-1,
    )


def factor_runs(slots: Iterable[Slot], rates: Sequence[float] = ()) -> tuple[tuple[int, float], ...]:
    """``(end, factor)`` of consecutive runs of slots: picks' scale times rate; empty if all are 1.

    Args:
        slots: In parameter-index order.
        rates: One a slot; empty: 1 for all.
    """
    runs: list[tuple[int, float]] = []
    for number, slot in enumerate(slots):
        factor = (slot.picks.scale if slot.picks else 1.0) * (rates[number] if rates else 1.0)
        if runs and runs[-1][1] == factor:
            runs.pop()
        runs.append((slot.offset + slot.size, factor))
    return () if len(runs) == 1 and runs[0][1] == 1.0 else tuple(runs)


def row_width(parameter: Tensor) -> int:
    """Values of each row of a parameter's first dimension; a sharded one has no row to count."""
    return math.prod(parameter.shape[1:])


def section_rows(width: int) -> int:
    """Rows of a parameter's first dimension in each of its sections, of which the last may be shorter.

    A block that reaches a sink is made of whole sections. Where they end depends on the parameter's shape alone, so
    that what is rounded section by section (grids of raw gradients) or summed piece by piece has the same bits in any
    batch.
    """
    return whole_pieces(max(1, SECTION_VALUES // width), width)


def section_starts(slots: Iterable[Slot]) -> list[int]:
    """Parameter index of the first value of every section, in ascending order."""
    starts: list[int] = []
    for slot in slots:
        starts.extend(range(slot.offset, slot.offset + slot.size, slot.section * slot.width))
    return starts
