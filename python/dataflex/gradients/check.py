"""Comparison of batched gradients with plain backward passes on the very model that they are wanted for.

It always happens before the rules are trusted, once for a model's structure and a kind of loss, and is made so that a
wrong rule cannot hide:

- on two items of different length, so that padding matters if it can;
- in float32, whatever the model runs in (:mod:`dataflex.models.wide`): the rounding of 16 bits is larger than the whole
  gradient of many a parameter;
- with parameters that are zero (LoRA's B at the start) set to small numbers for the time, as they, or what lies before
  them, would have no gradient to compare.

What had no gradient in spite of that is compared again when the rules are next wanted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from dataflex.gradients.hooks import Sink
from dataflex.gradients.slots import Pick, everything, parameter_slots
from dataflex.models.model import trainable_parameters
from dataflex.models.sharding import as_sharded, whole

AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest relative difference in any parameter, by the precision of the comparison. A wrong rule is off by about 1;
rounding in a batch of other shape is far below these."""
NEGLIGIBLE = 1e-3
"""A parameter's difference counts relative to its gradient's norm plus this share of the whole gradient's: biases of
attention keys have a gradient of zero, which rounding makes arbitrary."""
SEEN = 1e-5
"""A parameter with this share of the whole gradient cannot be off by a tenth without being found."""
FILLED = 0.02
"""Standard deviation of what stands in for parameters that are zero."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison found.

    Attributes:
        reason: How the rules are off where they are most; None if nowhere by more than rounding.
        unseen: Names of parameters whose gradient was too small to tell.
    """

    reason: str | None
    unseen: list[str] = field(default_factory=list)


def compared(
    model: nn.Module, expected: Tensor, run: Callable[[Sink], frozenset[str]], pick: Pick = everything
) -> Verdict:
    """Compare batched gradients with plain ones, parameter by parameter.

    Args:
        model: The model.
        expected: ``(g, p)`` gradients from plain backward passes, finite: beside one that is not, no rule could be
            judged, so the caller leaves such items out. Of picked coordinates, theirs alone.
        run: Streams the batched gradients of the same g items into a sink, and returns the names of parameters that no
            call used. A gradient that is not finite is infinitely off.
        pick: Coordinates of a parameter that are compared.
    """
    slots = list(parameter_slots(model, pick).values())
    starts = [slot.offset for slot in slots]
    errors = [0.0] * len(slots)

    def compare(block: Tensor, offset: int) -> None:
        wanted = expected[:, offset : offset + block.shape[1]]
        errors[bisect_right(starts, offset) - 1] += float((block.double() - wanted).square().sum())

    unused = run(compare)
    whole = _norm(expected)
    sizes = [_norm(part) for part in expected.tensor_split(starts[1:], dim=1)]
    ratios = [_ratio(error**0.5, size + NEGLIGIBLE * whole) for error, size in zip(errors, sizes, strict=True)]
    worst = max(range(len(slots)), key=ratios.__getitem__)
    limit = _limit(model)
    if ratios[worst] > limit:
        return Verdict(f"{slots[worst].name} is off by {ratios[worst]:.2g} of its gradient's norm (limit {limit:g})")
    small = [slot.name for slot, size in zip(slots, sizes, strict=True) if not size > SEEN * whole]
    return Verdict(None, [name for name in small if name not in unused])


@contextmanager
def without_zeros(model: nn.Module) -> Iterator[None]:
    """Trainable parameters that are zero throughout are small random numbers inside the block."""
    with torch.no_grad():
        zeros = [
            (name, values, values.clone()) for name, values in trainable_parameters(model) if not whole(values).any()
        ]
        generator = torch.Generator().manual_seed(0)
        for _, values, _ in zeros:
            values.copy_(as_sharded(FILLED * torch.randn(values.shape, generator=generator), values))
    try:
        yield
    finally:
        with torch.no_grad():
            for _, values, before in zeros:
                values.copy_(before)


class Verdicts:
    """What is known of models in this process, by their structure."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()

    def find(self, model: nn.Module, kind: str) -> Verdict | None:
        """The verdict on a kind of gradient of this model as it is built now."""
        known: dict[Any, Verdict] = self._known.get(model, {})
        return known.get((kind, _structure(model)))

    def keep(self, model: nn.Module, kind: str, verdict: Verdict) -> None:
        """Remember a verdict."""
        self._known.setdefault(model, {})[kind, _structure(model)] = verdict

    def forget(self) -> None:
        """Forget all of them."""
        self._known = WeakIdKeyDictionary()


VERDICTS = Verdicts()


def _structure(model: nn.Module) -> int:
    """Changes with the modules of a model, with which of them recompute, or with what is trained in it."""
    modules = tuple(
        (name, type(module), getattr(module, "gradient_checkpointing", None)) for name, module in model.named_modules()
    )
    parameters = tuple((name, values.dtype, tuple(values.shape)) for name, values in trainable_parameters(model))
    return hash((modules, parameters))


def _norm(values: Tensor) -> float:
    """Summed in float64: in float32 the squares of finite values overflow from 2e19 on."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _ratio(error: float, size: float) -> float:
    """The relative difference; NaN, which no comparison would find, counts as infinite."""
    ratio = error / size if size else error
    return math.inf if math.isnan(ratio) else ratio


def _limit(model: nn.Module) -> float:
    dtypes = {parameter.dtype for parameter in model.parameters()}
    return max(AGREEMENT.get(dtype, AGREEMENT[torch.float32]) for dtype in dtypes)
