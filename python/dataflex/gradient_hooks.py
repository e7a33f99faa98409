"""Per-sample gradients of a whole batch from one backward pass.

For a linear layer with inputs a ``(b, t, in)`` and output gradients d ``(b, t, out)`` of sum_i L_i, sample i's gradient
is

    grad_W L_i = sum_t d_it a_it^T,        grad_bias L_i = sum_t d_it,

since row i of the batch enters L_i alone (Goodfellow 2015, arXiv 1510.01799). Forward hooks catch a, tensor hooks catch
d, and the pair becomes a block of that layer's parameters at once, is handed to a sink and freed: never more than one
layer's gradients are in memory. The parameters themselves are frozen during the pass, so no weight gradient is
computed that nobody wants.

What the rule does not cover (other trainable modules, layers that are called twice or on reshaped inputs) is refused
with :class:`UnsupportedModel`; the caller then takes one backward pass a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dataflex.data.collate import Batch
from dataflex.losses import mean_losses
from dataflex.model import base_model, trainable_parameters
from dataflex.types import Autocast

Sink = Callable[[Tensor, int], None]
"""Takes a block ``(b, n)`` float32 and the parameter index of its first column."""


class UnsupportedModel(Exception):  # noqa: N818 -- control flow between two paths, never shown as an error
    """The batched rule does not give this model's per-sample gradients; the message says why."""


@dataclass(frozen=True, slots=True)
class LinearLayer:
    """A linear layer with trainable parameters and where they lie in the parameter index."""

    name: str
    module: nn.Linear
    weight_offset: int | None
    bias_offset: int | None


class BatchedGradients:
    """Streams the per-sample gradients of a batch, layer by layer.

    Args:
        model: Model whose trainable parameters all belong to linear layers (LoRA's A and B are such).

    Raises:
        UnsupportedModel: Another kind of module owns a trainable parameter, or two modules share one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = _linear_layers(model)

    def run(self, batch: Batch, autocast: Autocast, sink: Sink) -> None:
        """One forward and one backward pass; every trainable parameter reaches the sink exactly once.

        Args:
            batch: ``(b, t)`` tensors on the model's device, right-padded; every row has label tokens.
            autocast: The trainer's forward context.
            sink: Receives the blocks in the order of the backward pass.

        Raises:
            UnsupportedModel: A layer was called twice, or its input is not ``(b, t, in)``.
        """
        rows = len(batch.input_ids)
        calls: dict[str, Tensor] = {}
        done: set[str] = set()

        def forward_hook(layer: LinearLayer) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
            def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
                del module
                if layer.name in calls:
                    raise UnsupportedModel(f"{layer.name} is called more than once")
                if inputs[0].ndim != 3 or inputs[0].shape[0] != rows:
                    raise UnsupportedModel(f"{layer.name} sees an input of shape {tuple(inputs[0].shape)}")
                calls[layer.name] = inputs[0].detach()
                output.register_hook(lambda gradient: backward_hook(layer, gradient))  # type: ignore[no-untyped-call]

            return hook

        def backward_hook(layer: LinearLayer, gradient: Tensor) -> None:
            _stream(layer, calls[layer.name], gradient, sink)
            calls[layer.name] = gradient.new_empty(0)
            done.add(layer.name)

        handles = [layer.module.register_forward_hook(forward_hook(layer)) for layer in self._layers]
        try:
            with frozen(self._model), torch.enable_grad(), _embeddings(self._model) as embedded:
                with autocast():
                    losses = mean_losses(self._model, batch)
                torch.autograd.grad(losses.sum(), embedded)
        finally:
            for handle in handles:
                handle.remove()
        missed = [layer.name for layer in self._layers if layer.name not in done]
        if missed:
            raise UnsupportedModel(f"no gradient reaches {missed[0]}")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """``requires_grad`` off for all trainable parameters inside the block."""
    parameters = [parameter for _, parameter in trainable_parameters(model)]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


@contextmanager
def _embeddings(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the embeddings' outputs and makes them require gradients, which starts the graph there."""
    collected: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        del module, inputs
        leaf = output.detach().requires_grad_()
        collected.append(leaf)
        return leaf

    inner: Any = base_model(model)
    handle = inner.get_input_embeddings().register_forward_hook(hook)
    try:
        yield collected
    finally:
        handle.remove()


def _stream(layer: LinearLayer, inputs: Tensor, gradient: Tensor, sink: Sink) -> None:
    """Hand over one layer's blocks: ``(b, out * in)`` for the weight, ``(b, out)`` for the bias."""
    outgoing = gradient.to(torch.promote_types(gradient.dtype, torch.float32))  # (b, t, out)
    if layer.weight_offset is not None:
        incoming = inputs.to(outgoing.dtype)  # (b, t, in)
        sink(torch.bmm(outgoing.transpose(1, 2), incoming).flatten(1), layer.weight_offset)
    if layer.bias_offset is not None:
        sink(outgoing.sum(dim=1), layer.bias_offset)


def _linear_layers(model: nn.Module) -> list[LinearLayer]:
    offsets: dict[nn.Parameter, int] = {}
    end = 0
    for _, parameter in trainable_parameters(model):
        offsets[parameter] = end
        end += parameter.numel()
    owners: dict[nn.Parameter, str] = {}
    layers = []
    for name, module in model.named_modules():
        own = [parameter for parameter in module.parameters(recurse=False) if parameter in offsets]
        for parameter in own:
            if parameter in owners:
                raise UnsupportedModel(f"{owners[parameter]} and {name} share a parameter")
            owners[parameter] = name
        if own and type(module) is not nn.Linear:
            raise UnsupportedModel(f"{name} is a {type(module).__name__}")
        if own and isinstance(module, nn.Linear):
            at = {key: offsets.get(parameter) for key, parameter in module.named_parameters(recurse=False)}
            layers.append(LinearLayer(name, module, at.get("weight"), at.get("bias")))
    return layers
