"""What a model's losses, gradients and answers depend on, as one digest.

Results of a round on disk are used again only under the same digest. It does not depend on device, number of
processes or gradient checkpointing, and it is the same in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.weak import WeakTensorKeyDictionary

from dataflex.data.plain import plain
from dataflex.errors import DataError
from dataflex.models.model import autocast_dtype, base_model, trainable_parameters
from dataflex.models.sharding import whole
from dataflex.types import Autocast

SAMPLED_VALUES = 4096
"""Values of a frozen tensor that are read each time."""
_CHUNK = 1 << 26  # bytes on their way from a device
NOT_FORWARD = {"architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
"""Keys of a model's configuration that saving, loading or gradient checkpointing may change, and the forward pass does
not depend on; the weights' own types are in the digest."""

_checksums: Any = WeakTensorKeyDictionary()
"""Frozen tensor -> (its storage and version when it was read, CRC-32)."""


def state_fingerprint(model: nn.Module, autocast: Autocast, optimizer: torch.optim.Optimizer | None = None) -> str:
    """SHA-256 over everything that fixes what the model computes in eval mode.

    That is: names, types, shapes and values of trainable parameters, of frozen ones and of persistent buffers; the
    base model's configuration (buffers that are not saved follow from it, and some change with the longest sequence
    seen); kind, active adapters and scale of each adapted module; the type of autocast; and, if the optimizer is
    given, its state of the trainable parameters.

    Trainable values are hashed whole each time. Frozen ones, which may be gigabytes, are sampled each time and read
    whole (CRC-32) once for each tensor object: again only when torch's version counter or the storage says that they
    were written. A write past that counter (``tensor.data``) is seen if it changes a sampled value.
    """
    digest = hashlib.sha256(fingerprint(_facts(model, autocast)).encode())
    trainable = trainable_parameters(model)
    for name, parameter in trainable:
        digest.update(name.encode())
        _update(digest, parameter.detach())
        state: Mapping[str, Any] = optimizer.state.get(parameter, {}) if optimizer is not None else {}
        for key in sorted(state):
            digest.update(key.encode())
            _update(digest, torch.as_tensor(state[key]))
    names = {name for name, _ in trainable}
    for name, tensor in _saved_tensors(model):
        if name not in names:
            digest.update(name.encode())
            digest.update(str((tensor.dtype, tuple(tensor.shape), _checksum(tensor))).encode())
            flat = whole(tensor).flatten()
            _update(digest, flat[:: (len(flat) // SAMPLED_VALUES) | 1])  # odd: rows are not hit in one column
    return digest.hexdigest()


def frozen_fingerprint(model: nn.Module) -> str:
    """SHA-256 over up to 4,096 values of each frozen parameter: what tells a base model from another one, quickly.

    Names are those of the base model, whichever modules an adapter wraps; training, dropout and device do not matter.
    """
    digest = hashlib.sha256()
    named = [(_base_name(name), tensor) for name, tensor in model.named_parameters() if not tensor.requires_grad]
    for name, tensor in sorted(named, key=lambda entry: entry[0]):
        flat = whole(tensor.detach()).flatten()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        _update(digest, flat[:: (len(flat) // SAMPLED_VALUES) | 1])
    return digest.hexdigest()


def _base_name(name: str) -> str:
    """A parameter's name without what peft adds to it."""
    for part in ("base_layer.", "original_module."):
        name = name.replace(part, "")
    return name.removeprefix("base_model.model.")


def forward_settings(model: nn.Module) -> dict[str, Any]:
    """The base model's configuration, as far as its forward pass depends on it."""
    config = getattr(base_model(model), "config", None)
    found: dict[str, Any] = _forward_settings(config.to_dict()) if config is not None else {}
    return found


def fingerprint(value: Any) -> str:
    """SHA-256 of a JSON-able value; what JSON lacks counts by its plain form or, without one, by its ``repr``."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_plain_or_repr).encode()).hexdigest()


def _plain_or_repr(value: Any) -> Any:
    try:
        return plain(value)
    except DataError:
        return repr(value)


def _facts(model: nn.Module, autocast: Autocast) -> dict[str, Any]:
    return {
        "config": forward_settings(model),
        "adapters": _adapters(model),
        "autocast": str(autocast_dtype(autocast, next(model.parameters()).device.type)),
    }


def _forward_settings(value: Any) -> Any:
    """A configuration without the keys that do not matter, at any depth; those with an underscore name files."""
    if not isinstance(value, Mapping):
        return value
    kept = {str(key): _forward_settings(inner) for key, inner in value.items() if key not in NOT_FORWARD}
    return {key: inner for key, inner in kept.items() if not key.startswith("_") and not key.endswith("_token_id")}


def _adapters(model: nn.Module) -> dict[str, Any]:
    """What peft's modules do beside their weights, by module; scales come from r, lora_alpha, use_rslora, patterns."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            scales: Mapping[str, Any] = getattr(module, "scaling", {})
            found[name] = {
                "kind": type(module).__name__,
                "enabled": not module.disable_adapters,
                "merged": sorted(module.merged_adapters),
                "scales": {adapter: scales.get(adapter) for adapter in module.active_adapters},
            }
    return found


def _saved_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers; one that modules share comes once."""
    yield from model.named_parameters()
    passing = {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in model.named_modules()
        for name in module._non_persistent_buffers_set
    }
    for name, buffer in model.named_buffers():
        if name not in passing:
            yield name, buffer


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of all values; a tensor that was not written since is not read again."""
    if tensor.is_inference():  # no version is counted
        return _crc32(tensor)
    held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    place = (held.data_ptr(), held._version, tensor.dtype, tuple(tensor.shape))
    known = _checksums.get(tensor)
    if known is None or known[0] != place:
        known = _checksums[tensor] = (place, _crc32(tensor))
    return int(known[1])


def _crc32(tensor: Tensor) -> int:
    found = 0
    values = _bytes(tensor)
    for start in range(0, len(values), _CHUNK):
        found = zlib.crc32(values[start : start + _CHUNK].cpu().numpy().data, found)
    return found


def _update(digest: Any, tensor: Tensor) -> None:
    digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
    digest.update(_bytes(tensor).cpu().numpy().data)


def _bytes(tensor: Tensor) -> Tensor:
    """The values in their order as uint8; float32's -0.0 and 0.0 differ."""
    return whole(tensor.detach()).contiguous().flatten().view(torch.uint8)
