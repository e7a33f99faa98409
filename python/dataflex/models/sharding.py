"""Parameters that are sharded over the processes with torch's FSDP2 (``fully_shard``).

Every decoder layer is a unit, and so is what is left of the transformers model: embeddings, last norm, output head. A
process keeps its part of each parameter, a ``DTensor``; a unit's parameters are whole while it computes. Module inputs
and output gradients are whole at any time, so that the rules for gradients of single samples apply as they are.

A forward pass is a collective: all processes have to make it. So is every function here that gives whole values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dataflex.errors import CheckpointError, ModelError
from dataflex.models.model import base_model, trainable_parameters
from dataflex.models.quantization import is_quantized
from dataflex.models.rope import scaled_rotaries
from dataflex.utils.shown import listed


def shard(model: nn.Module, mesh: DeviceMesh, layers: Sequence[str] | None = None) -> nn.Module:
    """Shard the parameters of a model in place.

    A peft model is sharded below the adapter's wrapper, so that ``generate``, which passes it by, finds whole weights.

    Args:
        model: Transformers or peft model with the same values on every process.
        mesh: The processes, in one dimension.
        layers: Classes of the modules that are units of their own; None: what the model says must not be split.

    Raises:
        ModelError: It has no such modules, or cannot be sharded.
    """
    problems = list(sharding_problems(model, layers))
    if problems:
        raise ModelError(f"the parameters of {type(base_model(model)).__name__} cannot be sharded: {problems[0]}")
    root = base_model(model)
    for unit in _units(root, layers):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    # Not the default for the outermost module, which would stay whole until the next backward pass.
    fully_shard(root, mesh=mesh, reshard_after_forward=True)
    if isinstance(model, PeftModel):
        # peft calls the forward method of the model below, which passes its hooks by.
        tuner: Any = model.base_model
        tuner.forward = root.__call__
    return model


def sharding_problems(model: nn.Module, layers: Sequence[str] | None = None) -> Iterator[str]:
    """Why a model cannot be sharded."""
    root = base_model(model)
    if not _units(root, layers):
        wanted = "no module of the classes that must not be split" if layers is None else f"no {' or '.join(layers)}"
        kinds = sorted({type(module).__name__ for module in root.modules() if len(list(module.children())) > 1})
        yield f"it has {wanted}; fsdp_config: {{transformer_layer_cls_to_wrap: ...}} names one of {listed(kinds)}"
    if is_quantized(root):
        yield "quantised weights are not supported yet with fsdp; remove quantization_bit"
    narrow = sorted({str(one.dtype) for one in model.parameters() if one.dtype not in (torch.float32, torch.float64)})
    if narrow:
        yield f"fsdp keeps parameters in float32 (bf16: true computes in bfloat16), got {', '.join(narrow)}"
    if scaled_rotaries(model):
        yield "rotary frequencies that depend on the length of a row are not supported yet with fsdp"


def _units(root: nn.Module, layers: Sequence[str] | None) -> list[nn.Module]:
    names = set(layers if layers is not None else getattr(root, "_no_split_modules", None) or ())
    return [module for module in root.modules() if type(module).__name__ in names]


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was called."""
    return isinstance(base_model(model), FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """All values of a tensor, sharded or not; every process has to ask for them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def as_sharded(values: Tensor, like: Tensor) -> Tensor:
    """Whole values, the same on every process, where and as ``like`` lies."""
    if not isinstance(like, DTensor):
        return values.to(like.device)
    return distribute_tensor(values.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor] | None:
    """What ``save_pretrained`` takes as ``state_dict``: an adapter's parameters, or all; None if nothing is sharded.

    One parameter at a time is whole on every process.

    Args:
        model: The model; every process has to ask.
        keep: Whether this process writes it; the others get nothing.
    """
    if not is_sharded(model):
        return None
    found: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}  # tied weights are one tensor
    for name, value in _saved(model).items():
        if id(value) not in known:
            values = whole(value.detach())
            known[id(value)] = values.cpu() if keep else values.new_empty(0)
        found[name] = known[id(value)]
    return found if keep else {}


def load_whole(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Load what ``save_pretrained`` wrote of :func:`whole_weights`; every process has read it.

    Raises:
        CheckpointError: It is of another model.
    """
    own = _saved(model)
    if isinstance(model, PeftModel):
        own = get_peft_model_state_dict(model, own)
    unknown = sorted(set(values) - set(own))
    places = {id(own[name]) for name in values if name in own}
    missing = sorted(name for name, value in own.items() if id(value) not in places)
    if unknown or missing:
        raise CheckpointError(f"the weights are of another model: {listed([*unknown, *missing])}")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(as_sharded(value, own[name]))


def _saved(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that are saved, by name; tied ones are one object."""
    if isinstance(model, PeftModel):
        return dict(trainable_parameters(model))
    found: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return found


@contextmanager
def used_parameters(model: nn.Module) -> Iterator[Callable[[], list[Tensor | None]]]:
    """The tensors that stand for the trainable parameters in the forward pass inside the block, by parameter index.

    Of sharded parameters these are the whole ones that a unit computes with, None where it was not called. Autograd
    gives their gradients without reducing anything.
    """
    trainable = trainable_parameters(model)
    if not is_sharded(model):
        yield lambda: [parameter for _, parameter in trainable]
        return
    found: dict[str, Tensor] = {}
    names = {parameter: name for name, parameter in trainable}
    handles = []
    for module in model.modules():
        own = {key: names[one] for key, one in module.named_parameters(recurse=False) if one in names}

        def note(module: nn.Module, *_: Any, own: Mapping[str, str] = own) -> None:
            found.update({name: getattr(module, key) for key, name in own.items()})

        if own:
            handles.append(module.register_forward_hook(note))
    try:
        yield lambda: [found.get(name) for name, _ in trainable]
    finally:
        for handle in handles:
            handle.remove()
