"""An optimizer's moments over the trainable parameters, as Adam normalisation reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dataflex.errors import GradientError
from dataflex.models.model import trainable_parameters
from dataflex.projection.projector import AdamMoments, AdamVariant


def adam_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, variant: AdamVariant = "adamw"
) -> AdamMoments:
    """The optimizer's moments over all trainable parameters, in parameter-index order.

    Betas and eps are those of the optimizer's parameter groups, ``step`` the number of steps it has taken.

    Args:
        model: Model whose trainable parameters the optimizer owns.
        optimizer: torch's Adam or AdamW.
        variant: Which normalisation the moments are for.

    Returns:
        Moments of shape ``(p,)`` float32.

    Raises:
        GradientError: As :func:`adam_settings` and :func:`adam_states`.
    """
    betas, eps = adam_settings(optimizer)
    states = adam_states(model, optimizer)
    return AdamMoments(
        exp_avg=_flat(state["exp_avg"] for state in states),
        exp_avg_sq=_flat(state["exp_avg_sq"] for state in states),
        step=int(states[0]["step"]),
        betas=betas,
        eps=eps,
        variant=variant,
    )


def adam_settings(optimizer: torch.optim.Optimizer | None) -> tuple[tuple[float, float], float]:
    """Betas and eps of all parameter groups.

    Raises:
        GradientError: No optimizer, another kind than Adam or AdamW, amsgrad, or groups that differ.
    """
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        raise GradientError(
            f"gradient_type 'adam' reads the moments of torch's Adam or AdamW, got {type(optimizer).__name__}",
            hint="use AdamW, or gradient_type: sgd",
        )
    settings = {
        (tuple(map(float, group["betas"])), float(group["eps"]), bool(group["amsgrad"]))
        for group in optimizer.param_groups
    }
    if len(settings) != 1 or next(iter(settings))[2]:
        raise GradientError(
            f"the optimizer's groups must share betas and eps and not use amsgrad, got {sorted(settings)}",
            hint="use one setting for all groups, or gradient_type: sgd",
        )
    (beta1, beta2), eps, _ = next(iter(settings))
    return (beta1, beta2), eps


def adam_states(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Mapping[str, Any]]:
    """Adam's state of each trainable parameter, in parameter-index order; nothing is copied.

    Raises:
        GradientError: No step was taken yet, or parameters have taken different numbers of steps.
    """
    known = optimizer.state if optimizer is not None else {}
    states = [known.get(parameter, {}) for _, parameter in trainable_parameters(model)]
    if any("exp_avg" not in state for state in states):
        raise GradientError(
            "the optimizer has no moments yet: no step was taken before this selection",
            hint="a longer warm-up (warmup_step >= 1), or gradient_type: sgd",
        )
    steps = {int(state["step"]) for state in states}
    if len(steps) != 1:
        raise GradientError(f"parameters have taken different numbers of steps: {sorted(steps)}")
    return states


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])
