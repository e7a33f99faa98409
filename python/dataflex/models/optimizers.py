"""Optimizers by the names that transformers gives them: how each is made, and made again from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from dataflex.config.values import OPTIMIZERS
from dataflex.errors import TrainingError
from dataflex.models.model import trainable_parameters
from dataflex.utils.shown import listed

ADAM_KEYS = ("betas", "eps")
ADAFACTOR_KEYS = ("eps", "clip_threshold", "decay_rate", "beta1", "scale_parameter", "relative_step", "warmup_init")
RATES = ("lr", "initial_lr")


@dataclass(frozen=True)
class OptimizerKind:
    """One optimizer.

    Attributes:
        load: Returns its class; the package may be absent.
        given: Arguments beside parameters, rate and weight decay.
        adam: It takes ``betas`` and ``eps`` of the run.
        keys: Entries of a parameter group that its state cannot be interpreted without.
        tensor_steps: It counts steps in float32 tensors, as torch's Adam does, not in integers.
        matrices_only: It steps parameters of two dimensions alone.
        state_bytes: What it keeps of a parameter, in bytes a value.
        package: Package that has it, beside torch and transformers.
    """

    load: Callable[[], type[torch.optim.Optimizer]]
    given: Mapping[str, Any] = field(default_factory=dict)
    adam: bool = False
    keys: tuple[str, ...] = ()
    tensor_steps: bool = False
    matrices_only: bool = False
    state_bytes: int = 8
    package: str | None = None


def _torch_adamw() -> type[torch.optim.Optimizer]:
    return torch.optim.AdamW


def _bitsandbytes(name: str, state_bytes: int) -> OptimizerKind:
    def load() -> type[torch.optim.Optimizer]:
        if find_spec("bitsandbytes") is None:
            raise TrainingError(
                "8-bit and paged optimizers come from bitsandbytes, which is not installed",
                hint='pip install "dataflex-sdk[quant]", or optim: adamw_torch',
            )
        import bitsandbytes

        found: type[torch.optim.Optimizer] = getattr(bitsandbytes.optim, name)
        return found

    return OptimizerKind(load, adam=True, keys=ADAM_KEYS, state_bytes=state_bytes, package="bitsandbytes")


def _adafactor() -> type[torch.optim.Optimizer]:
    from transformers.optimization import Adafactor

    return Adafactor


KINDS: dict[str, OptimizerKind] = {
    "adamw_torch": OptimizerKind(_torch_adamw, adam=True, keys=ADAM_KEYS, tensor_steps=True),
    "adamw_torch_fused": OptimizerKind(_torch_adamw, {"fused": True}, adam=True, keys=ADAM_KEYS, tensor_steps=True),
    "adamw_8bit": _bitsandbytes("AdamW8bit", 2),
    "paged_adamw_32bit": _bitsandbytes("PagedAdamW32bit", 8),
    "paged_adamw_8bit": _bitsandbytes("PagedAdamW8bit", 2),
    # As transformers' Trainer sets it up: the run's own rate and schedule, no first moment.
    "adafactor": OptimizerKind(
        _adafactor, {"scale_parameter": False, "relative_step": False}, keys=ADAFACTOR_KEYS, state_bytes=0
    ),
    "sgd": OptimizerKind(lambda: torch.optim.SGD, state_bytes=0),
    # Updates of the size of AdamW's (arXiv 2502.16982), so that its learning rates fit.
    "muon": OptimizerKind(
        lambda: torch.optim.Muon, {"adjust_lr_fn": "match_rms_adamw"}, matrices_only=True, state_bytes=4
    ),
}
assert tuple(KINDS) == OPTIMIZERS


def create(
    name: str,
    model: nn.Module,
    groups: Sequence[Mapping[str, Any]],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
) -> torch.optim.Optimizer:
    """An optimizer over parameter groups.

    Args:
        name: A key of :data:`KINDS`.
        model: Owns the parameters; for messages.
        groups: torch's parameter groups.
        learning_rate: Of groups without ``lr``.
        betas: Of Adam's kinds.
        eps: Of Adam's kinds.

    Raises:
        TrainingError: Its package is not installed, or there are trainable parameters that it cannot step.
    """
    kind = KINDS[name]
    if kind.matrices_only:
        others = [own for own, parameter in trainable_parameters(model) if parameter.ndim != 2]
        if others:
            raise TrainingError(
                f"optim: {name} steps matrices alone; {len(others)} of the trained parameters are none: "
                f"{listed(others)}",
                hint="train LoRA adapters alone, or take optim: adamw_torch",
            )
    adam = {"betas": betas, "eps": eps} if kind.adam else {}
    make: Callable[..., torch.optim.Optimizer] = kind.load()
    return make([dict(group) for group in groups], lr=learning_rate, **adam, **kind.given)


def name_of(optimizer: torch.optim.Optimizer) -> str:
    """The first name in :data:`KINDS` of an optimizer's class.

    Raises:
        TrainingError: It has none.
    """
    for name, kind in KINDS.items():
        if (kind.package is None or find_spec(kind.package)) and type(optimizer) is kind.load():
            return name
    raise TrainingError(f"the state of {type(optimizer).__name__} cannot be saved, expected one of {listed(KINDS)}")


def describe(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What :func:`restore` makes it again from, JSON-able: name, settings, and the rates of parameters."""
    name = name_of(optimizer)
    names = {parameter: own for own, parameter in trainable_parameters(model)}
    groups = [
        {**{key: group[key] for key in RATES if key in group}, "names": [names[p] for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    return {"optim": name, "groups": groups, **{key: optimizer.param_groups[0][key] for key in KINDS[name].keys}}


def restore(model: nn.Module, described: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer of a checkpoint, without its state.

    Args:
        model: The model that the checkpoint is of.
        described: What :func:`describe` wrote.

    Raises:
        TrainingError: Its package is not installed.
        KeyError: It is described otherwise, or a parameter is another model's.
    """
    kind = KINDS[described["optim"]]
    parameters = dict(trainable_parameters(model))
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in described.items()}
    own = {key: settings[key] for key in kind.keys}
    groups = [
        {"params": [parameters[name] for name in group["names"]], **{key: group[key] for key in RATES if key in group}}
        for group in described["groups"]
    ]
    make: Callable[..., torch.optim.Optimizer] = kind.load()
    return make([{**group, **own} for group in groups], lr=described["groups"][0]["lr"], **kind.given)
