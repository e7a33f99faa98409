"""Comparison of batched gradients with plain backward passes on the very model that they are wanted for."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dataflex.gradients.hooks import Sink, parameter_slots
from dataflex.models.model import autocast_dtype
from dataflex.types import Autocast

AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}
"""Largest relative difference in any parameter, by the precision of the forward pass. A wrong rule is off by about 1;
rounding in a batch of other shape is far below these."""
NEGLIGIBLE = 0.05
"""A parameter's difference counts relative to its gradient's norm plus this share of the whole gradient's: biases of
attention keys have a gradient of zero, which rounding makes arbitrary."""


def disagreement(model: nn.Module, autocast: Autocast, expected: Tensor, run: Callable[[Sink], None]) -> str | None:
    """How batched gradients are off in the parameter where they are most; None if nowhere by more than rounding.

    Args:
        model: The model.
        autocast: Its forward context.
        expected: ``(g, p)`` gradients from plain backward passes, finite: beside one that is not, no rule could be
            judged, so the caller leaves such items out.
        run: Streams the batched gradients of the same g items into a sink. One that is not finite is infinitely off.
    """
    slots = list(parameter_slots(model).values())
    starts = [slot.offset for slot in slots]
    errors = [0.0] * len(slots)

    def compare(block: Tensor, offset: int) -> None:
        wanted = expected[:, offset : offset + block.shape[1]]
        errors[bisect_right(starts, offset) - 1] += float((block.double() - wanted).square().sum())

    run(compare)
    negligible = NEGLIGIBLE * _norm(expected)
    sizes = [_norm(part) + negligible for part in expected.tensor_split(starts[1:], dim=1)]
    ratios = [_ratio(error**0.5, size) for error, size in zip(errors, sizes, strict=True)]
    worst = max(range(len(slots)), key=ratios.__getitem__)
    limit = _limit(model, autocast, expected.device.type)
    if ratios[worst] <= limit:
        return None
    return f"{slots[worst].name} is off by {ratios[worst]:.2g} of its gradient's norm (limit {limit:g})"


def _norm(values: Tensor) -> float:
    """Summed in float64: in float32 the squares of finite values overflow from 2e19 on."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64))


def _ratio(error: float, size: float) -> float:
    """The relative difference; NaN, which no comparison would find, counts as infinite."""
    ratio = error / size if size else error
    return math.inf if math.isnan(ratio) else ratio


def _limit(model: nn.Module, autocast: Autocast, device_type: str) -> float:
    dtypes = {parameter.dtype for parameter in model.parameters()}
    mixed = autocast_dtype(autocast, device_type)
    if mixed is not None:
        dtypes.add(mixed)
    return max(AGREEMENT.get(dtype, AGREEMENT[torch.float32]) for dtype in dtypes)
