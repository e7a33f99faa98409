"""Forward and backward passes in float32 of a model that is kept, or runs, in 16 bits.

Whether two ways to compute the same thing agree cannot be seen through the rounding of 16 bits, and a second copy of
the weights in float32 may not fit into memory. Inside :func:`in_float32` every operation gets its 16-bit tensors as
float32: a frozen weight is widened where it is used and forgotten after it, and what is computed from it stays wide.
Float32 copies stand in for trainable parameters for the time, so that their gradients are not rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dataflex.models.model import base_model

NARROW = (torch.bfloat16, torch.float16)
_aten = torch.ops.aten
_LOOKUPS = {_aten.embedding.default, _aten.index_select.default}
"""Operations that only pick values: their output is widened in place of a whole table."""
_KEEP = {_aten.detach.default, _aten.view.default, _aten.alias.default, _aten.t.default, _aten.transpose.int}
"""Views, which must stay views of what they were given."""


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute in float32, or wider where the model is, inside the block, with products as exact as the device allows.

    Autocast that the block itself turns on is the caller's to leave out. Attention kernels that exist for 16 bits alone
    (flash) give way to torch's own.

    Args:
        model: The model, wrapped or not.
    """
    with ExitStack() as stack:
        stack.enter_context(_exact_products())
        for config in _flash_configs(model):
            stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = "sdpa" if getattr(base_model(model), "_supports_sdpa", False) else "eager"
        trained = [one for one in model.parameters() if one.requires_grad and one.dtype in NARROW]
        wide = [nn.Parameter(parameter.detach().float()) for parameter in trained]
        stack.callback(_exchange, model, dict(zip(wide, trained, strict=True)))
        _exchange(model, dict(zip(trained, wide, strict=True)))
        if any(tensor.dtype in NARROW for tensor in [*model.parameters(), *model.buffers()]):
            stack.enter_context(_Widening())  # type: ignore[no-untyped-call]
        yield


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products of float32 matrices in float32 inside the block, whichever of torch's interfaces has set another way.

    From 2.9 on torch has a setting for each backend, which transformers uses to turn TF32 on; the one for all, which
    older code uses, cannot be read then, and setting it sets those too.
    """
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    before = [(backend, backend.fp32_precision) for backend in backends if hasattr(backend, "fp32_precision")]
    try:
        for_all = torch.get_float32_matmul_precision()
    except RuntimeError:  # the settings of the backends are others
        for_all = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(for_all)
        for backend, precision in before:
            backend.fp32_precision = precision


def _exchange(model: nn.Module, others: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Put other parameters into the places of some, also where modules share one.

    Other values of another type in the same parameter (``data``) would do for the gradients, but torch then drops its
    accumulator, and with it the hooks by which DistributedDataParallel averages over processes.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if parameter in others:
                setattr(module, name, others[parameter])


def _flash_configs(model: nn.Module) -> list[Any]:
    """The configurations of a model's parts that ask for flash attention."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    return [one for one in configs.values() if "flash" in str(getattr(one, "_attn_implementation", ""))]


class _Widening(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Widens what goes into an operation, and the type that one is asked to give."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run one operation, below autograd."""
        del types
        options = dict(kwargs or {})
        if func in _KEEP or func.namespace != "aten":
            return func(*args, **options)
        if func in _LOOKUPS:
            return _widened(func(*args, **options))
        return func(*_widened(args), **_widened(options))


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.dtype in NARROW else value
    if isinstance(value, torch.dtype):
        return torch.float32 if value in NARROW else value
    if isinstance(value, (list, tuple)):
        return type(value)(_widened(part) for part in value)
    return {key: _widened(part) for key, part in value.items()} if isinstance(value, dict) else value
