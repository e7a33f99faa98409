"""An optimizer's moments over the trainable parameters, as Adam normalisation reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dataflex.errors import GradientError
from dataflex.gradients.optimizer_states import reader_of
from dataflex.gradients.slots import Pick, Slot, everything, factor_runs, parameter_slots
from dataflex.models.model import trainable_parameters
from dataflex.projection.projector import AdamMoments, AdamVariant
from dataflex.utils.shown import shown

NAMED = 5
"""How many parameters a message names."""


def adam_moments(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    variant: AdamVariant = "adamw",
    pick: Pick = everything,
) -> AdamMoments:
    """The optimizer's moments over all trainable parameters, in parameter-index order.

    Betas, eps and learning rates are those of the optimizer's parameter groups, ``step`` the number of steps it has
    taken.

    Args:
        model: Model whose trainable parameters the optimizer owns.
        optimizer: Adam, AdamW (torch's, bitsandbytes') or Adafactor.
        variant: Which normalisation the moments are for; Adafactor has its own (:mod:`.optimizer_states`).
        pick: Coordinates of a parameter that are wanted; their scales are part of the learning rates.

    Returns:
        Moments of shape ``(p,)`` float32.

    Raises:
        GradientError: As :func:`adam_settings` and :func:`adam_states`.
    """
    reader = reader_of(optimizer)
    assert optimizer is not None  # reader_of would have raised
    states = adam_states(model, optimizer)
    step = int(states[0]["step"])
    slots = parameter_slots(model, pick)
    rates = factor_runs(slots.values(), _relative_rates(model, optimizer))
    read = [reader.moments(state, parameter.shape) for state, parameter in zip(states, slots, strict=True)]
    firsts, seconds = zip(
        *([_picked(slot, value) for value in pair] for slot, pair in zip(slots.values(), read, strict=True)),
        strict=True,
    )
    return AdamMoments(
        torch.cat(firsts),
        torch.cat(seconds),
        step,
        *adam_settings(optimizer, variant, step),
        largest_rate=max((rate for _, rate in rates), default=1.0),
        rates=rates,
    )


def adam_settings(
    optimizer: torch.optim.Optimizer | None, variant: AdamVariant, step: int = 1
) -> tuple[tuple[float, float], float, AdamVariant]:
    """Betas and eps of all parameter groups for the step after ``step``, and the formula that they are used in.

    Raises:
        GradientError: No optimizer, one whose step is no known function of its moments (subclasses may compute
            another), or groups with settings that change the step (all at once).
    """
    reader = reader_of(optimizer)
    assert optimizer is not None  # reader_of would have raised
    groups = optimizer.param_groups
    problems = [problem for number, group in enumerate(groups) for problem in reader.problems(optimizer, number, group)]
    settings = {reader.settings(group, step) for group in groups}
    if len(settings) != 1:
        problems.append(f"the groups must share betas and eps, got {sorted(settings)}")
    if problems:
        raise GradientError(
            f"gradient_type 'adam' cannot reproduce this optimizer's step: {'; '.join(problems)}",
            hint="change these settings of the optimizer, or use gradient_type: sgd",
        )
    beta1, beta2, eps = next(iter(settings))
    return (beta1, beta2), eps, reader.variant(variant)


def adam_states(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Mapping[str, Any]]:
    """The optimizer's state of each trainable parameter, in parameter-index order; nothing is copied.

    Raises:
        GradientError: No step was taken yet, or some parameters have taken none, or fewer than others.
    """
    known = optimizer.state if optimizer is not None else {}
    states = {name: known.get(parameter, {}) for name, parameter in trainable_parameters(model)}
    second = reader_of(optimizer).second
    without = [name for name, state in states.items() if second not in state]
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
    return factor_runs(parameter_slots(model).values(), _relative_rates(model, optimizer))


def plain_rates(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[float]:
    """Rate over mean rate of each parameter, of an optimizer that steps by plain gradients (torch's SGD).

    Empty for any other, and where all are equal.
    """
    if type(optimizer) is not torch.optim.SGD:
        return []
    known = _groups(model, optimizer)
    rates = [float(group.get("lr", 0.0)) for group in known.values()]
    if not any(rates):
        rates = [float(group.get("initial_lr", 1.0)) for group in known.values()]
    return _over_mean(known, rates)


def _relative_rates(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    """Rate over mean rate of each parameter; empty if all are equal."""
    reader = reader_of(optimizer)
    known = _groups(model, optimizer)
    states = [optimizer.state.get(parameter, {}) for parameter in known]
    rates = [reader.rate(*pair) for pair in zip(known.values(), states, strict=True)]
    if not any(rates):
        rates = [reader.rate(*pair, "initial_lr") for pair in zip(known.values(), states, strict=True)]
    return _over_mean(known, rates)


def _groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, dict[str, Any]]:
    """The optimizer's group of each trainable parameter, in parameter-index order; empty where it has none."""
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    return {parameter: groups.get(parameter, {}) for _, parameter in trainable_parameters(model)}


def _over_mean(parameters: Iterable[nn.Parameter], rates: Sequence[float]) -> list[float]:
    """Rates over their mean over all values; empty if all are equal."""
    if len(set(rates)) == 1:
        return []
    sizes = [parameter.numel() for parameter in parameters]
    mean = sum(rate * size for rate, size in zip(rates, sizes, strict=True)) / sum(sizes)
    return [rate / mean for rate in rates]


def _picked(slot: Slot, moment: Tensor) -> Tensor:
    """A moment's values of the slot, flat and float32."""
    values = moment.detach()
    return (values.flatten() if slot.picks is None else slot.picks.of(values)).float()
