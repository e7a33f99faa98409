"""Comparison of batched gradients with plain backward passes on the very model that they are wanted for."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dataflex.gradient_hooks import Sink, parameter_slots
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
        expected: ``(g, p)`` gradients from plain backward passes, finite.
        run: Streams the batched gradients of the same g items into a sink.
    """
    slots = list(parameter_slots(model).values())
    starts = [slot.offset for slot in slots]
    errors = [0.0] * len(slots)

    def compare(block: Tensor, offset: int) -> None:
        wanted = expected[:, offset : offset + block.shape[1]]
        errors[bisect_right(starts, offset) - 1] += float((block.double() - wanted).square().sum())

    run(compare)
    negligible = NEGLIGIBLE * float(expected.norm())
    sizes = [float(part.norm()) + negligible for part in expected.tensor_split(starts[1:], dim=1)]
    ratios = [error**0.5 / size if size else error for error, size in zip(errors, sizes, strict=True)]
    worst = max(range(len(slots)), key=ratios.__getitem__)
    limit = _limit(model, autocast, expected.device.type)
    if ratios[worst] <= limit:
        return None
    return f"{slots[worst].name} is off by {ratios[worst]:.2g} of its gradient's norm (limit {limit:g})"


def _limit(model: nn.Module, autocast: Autocast, device_type: str) -> float:
    dtypes = {parameter.dtype for parameter in model.parameters()}
    with autocast():
        if torch.is_autocast_enabled(device_type):
            dtypes.add(torch.get_autocast_dtype(device_type))
    return max(AGREEMENT.get(dtype, AGREEMENT[torch.float32]) for dtype in dtypes)
