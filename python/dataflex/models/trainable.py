"""Which parameters of a base model are trained where there is no adapter: all, or those of some layers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from dataflex.errors import ModelError
from dataflex.utils.shown import listed

_LAYER = re.compile(r"\.(\d+)\.([^.]+)")
"""Number of the layer and module in it, in a parameter's name."""


def train_all(model: PreTrainedModel) -> PreTrainedModel:
    """Let all parameters be trained, in float32: small steps would be lost in 16 bits."""
    for parameter in model.parameters():
        _train(parameter)
    return model


def train_layers(
    model: PreTrainedModel, layers: int, *, modules: Sequence[str] = ("all",), extra: Sequence[str] = ()
) -> PreTrainedModel:
    """Freeze a model but for some of its layers, in float32, as LLaMA-Factory's ``freeze`` does.

    Args:
        model: Base model.
        layers: How many: the last ones, or the first ones of a negative number.
        modules: Names of modules inside the layers (``self_attn``, ``mlp``, ...), or ``all``.
        extra: Names of modules outside the layers (``norm``, ``lm_head``, ...) that are trained, too.

    Raises:
        ModelError: There are no such modules.
    """
    found = {name: _LAYER.search(name) for name, _ in model.named_parameters()}
    numbers = sorted({int(place[1]) for place in found.values() if place})
    chosen = set(numbers[-layers:] if layers > 0 else numbers[:-layers])
    inside = {place[2] for place in found.values() if place}
    outside = {name.split(".")[-2] for name, place in found.items() if place is None and "." in name}
    unknown = [name for name in modules if name != "all" and name not in inside]
    unknown += [name for name in extra if name not in outside]
    if unknown:
        raise ModelError(
            f"{type(model).__name__} has no modules {listed(unknown)}",
            hint=f"freeze_trainable_modules: {listed(sorted(inside))}; freeze_extra_modules: {listed(sorted(outside))}",
        )
    for name, parameter in model.named_parameters():
        place = found[name]
        if place is None:
            trained = name.split(".")[-2] in extra
        else:
            trained = int(place[1]) in chosen and ("all" in modules or place[2] in modules)
        if trained:
            _train(parameter)
        else:
            parameter.requires_grad_(False)
    return model


def _train(parameter: torch.nn.Parameter) -> None:
    parameter.data = parameter.data.float()
    parameter.requires_grad_(True)
