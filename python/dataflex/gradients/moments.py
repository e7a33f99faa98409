"""An optimizer's moments over the trainable parameters, as Adam normalisation reads them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from dataflex.errors import GradientError
from dataflex.models.model import trainable_parameters
from dataflex.projection.projector import AdamMoments, AdamVariant
from dataflex.utils.shown import shown

NAMED = 5
"""How many parameters a message names."""


def adam_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, variant: AdamVariant = "adamw"
) -> AdamMoments:
    """The optimizer's moments over all trainable parameters, in parameter-index order.

    Betas, eps and learning rates are those of the optimizer's parameter groups, ``step`` the number of steps it has
    taken.

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
    assert optimizer is not None  # adam_settings would have raised
    rates = learning_rates(model, optimizer)
    return AdamMoments(
        exp_avg=_flat(state["exp_avg"] for state in states),
        exp_avg_sq=_flat(state["exp_avg_sq"] for state in states),
        step=int(states[0]["step"]),
        betas=betas,
        eps=eps,
        variant=variant,
        largest_rate=max((rate for _, rate in rates), default=1.0),
        rates=rates,
    )


def adam_settings(optimizer: torch.optim.Optimizer | None) -> tuple[tuple[float, float], float]:
    """Betas and eps of all parameter groups.

    Raises:
        GradientError: No optimizer, one whose step is not that of torch's Adam or AdamW (subclasses may compute
            another), or groups with settings that change the step (all at once).
    """
    if optimizer is None or type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        another = ", a subclass whose step may be another" if isinstance(optimizer, torch.optim.Adam) else ""
        raise GradientError(
            f"gradient_type 'adam' reads the moments of torch's Adam or AdamW, got {type(optimizer).__name__}{another}",
            hint="use AdamW, or gradient_type: sgd",
        )
    groups = optimizer.param_groups
    problems = [problem for number, group in enumerate(groups) for problem in _group_problems(optimizer, number, group)]
    settings = {(tuple(map(float, group["betas"])), float(group["eps"])) for group in groups}
    if len(settings) != 1:
        problems.append(f"the groups must share betas and eps, got {sorted(settings)}")
    if problems:
        raise GradientError(
            f"gradient_type 'adam' cannot reproduce this optimizer's step: {'; '.join(problems)}",
            hint="change these settings of the optimizer, or use gradient_type: sgd",
        )
    (beta1, beta2), eps = next(iter(settings))
    return (beta1, beta2), eps


def _group_problems(optimizer: torch.optim.Optimizer, number: int, group: Mapping[str, Any]) -> list[str]:
    """Settings of one parameter group under which the step is not -lr u and decoupled weight decay."""
    problems = [f"group {number} has {name}=True" for name in ("maximize", "amsgrad") if group.get(name)]
    decoupled = type(optimizer) is torch.optim.AdamW or group.get("decoupled_weight_decay")
    if group.get("weight_decay") and not decoupled:
        problems.append(
            f"group {number} of Adam has weight_decay={group['weight_decay']:g}, which becomes part of the gradient "
            "(AdamW's does not)"
        )
    return problems


def adam_states(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Mapping[str, Any]]:
    """Adam's state of each trainable parameter, in parameter-index order; nothing is copied.

    Raises:
        GradientError: No step was taken yet, or some parameters have taken none, or fewer than others.
    """
    known = optimizer.state if optimizer is not None else {}
    states = {name: known.get(parameter, {}) for name, parameter in trainable_parameters(model)}
    without = [name for name, state in states.items() if "exp_avg" not in state]
    if len(without) == len(states):
        raise GradientError(
            "the optimizer has no moments yet: no step was taken before this selection",
            hint="a longer warm-up (warmup_step >= 1), or gradient_type: sgd",
        )
    steps = {name: int(states[name]["step"]) for name in states if name not in without}
    most = max(steps.values())
    behind = [*without, *(f"{name} ({step} of {most} steps)" for name, step in steps.items() if step < most)]
    names = ", ".join(shown(name) for name in behind[:NAMED]) + (", ..." if len(behind) > NAMED else "")
    if behind:
        raise GradientError(
            f"{len(behind)} of {len(states)} trained parameters have taken no step, or fewer than others: {names}",
            hint="no gradient reached them in some steps (a layer that is not used, an expert that no token chose), or "
            "the optimizer does not own them: freeze them, or use gradient_type: sgd",
        )
    return list(states.values())


def learning_rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[tuple[int, float], ...]:
    """``(end, rate / mean rate)`` of consecutive runs of trainable parameters, the mean over all parameters.

    Empty if all are equal. Where a schedule has brought all rates to zero, those that it started from count.
    """
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    parameters = [parameter for _, parameter in trainable_parameters(model)]
    rates = [float(groups[parameter]["lr"]) for parameter in parameters]
    if not any(rates):
        rates = [float(groups[parameter].get("initial_lr", 0.0)) for parameter in parameters]
    if len(set(rates)) == 1:
        return ()
    sizes = [parameter.numel() for parameter in parameters]
    mean = sum(rate * size for rate, size in zip(rates, sizes, strict=True)) / sum(sizes)
    runs: list[tuple[int, float]] = []
    for rate, end in zip(rates, accumulate(sizes), strict=True):
        if runs and runs[-1][1] == rate / mean:
            runs.pop()
        runs.append((end, rate / mean))
    return tuple(runs)


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().flatten().float() for tensor in tensors])
