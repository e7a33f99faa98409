"""Per-sample gradients of a whole batch from one forward and one backward pass.

Every module that owns a trainable parameter is tapped: the identity is put on its output, and in the backward pass it
hands the module's input and output gradient to the module's rule (:mod:`dataflex.gradients.rules`). The block of
gradients that comes out goes to a sink and is freed. The parameters are frozen during the pass, so that autograd
computes no weight gradient, and the pass goes back no further than the first tapped module.

A parameter that is used more than once (tied embeddings, a module that is called twice) reaches the sink when the last
of its uses has come, as their sum. Autograd keeps the tapped inputs as it keeps any saved tensor, so that layers under
(non-reentrant) checkpointing keep none and hand on the recomputed one.

What the rules do not cover is refused with :class:`UnsupportedModel`; the caller then takes one backward pass a sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from dataflex.gradients.rules import Piece, Rule, find_rule
from dataflex.models.model import trainable_parameters
from dataflex.projection.dots import whole_pieces

Sink = Callable[[Tensor, int], None]
"""Takes a block ``(g, n)``, float32 or wider, and the parameter index of its first column."""

ForwardHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Tensor], Tensor | None]

BLOCK_VALUES = 1 << 24
"""Most gradients (b x n) that a rule makes at once: 64 MiB in float32 (a section of many rows may be larger)."""
SECTION_VALUES = 1 << 17
"""Most values of a section, unless a single row of the parameter has more. LoRA matrices are whole up to this size."""


class UnsupportedModel(Exception):  # noqa: N818 -- control flow between two paths, never shown as an error
    """The rules do not give this model's per-sample gradients; the message says why."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A trainable parameter's name and the parameter index of its first value."""

    name: str
    offset: int


@dataclass(frozen=True, slots=True)
class TappedModule:
    """A module with trainable parameters, by their names in it, and the rule for their gradients."""

    name: str
    module: nn.Module
    rule: Rule
    parameters: dict[str, nn.Parameter]


class BatchedGradients:
    """Streams the per-sample gradients of a batch, parameter by parameter.

    Args:
        model: Model whose trainable parameters all belong to modules with a rule (LoRA's A and B are linear layers).

    Raises:
        UnsupportedModel: Another kind of module owns a trainable parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._slots = parameter_slots(model)
        self._tapped = _tapped_modules(model, self._slots)

    def run(
        self,
        rows: int,
        losses: Callable[[], Tensor],
        sink: Sink,
        *,
        groups: Sequence[int] | None = None,
    ) -> frozenset[str]:
        """One forward and one backward pass; every trainable parameter reaches the sink exactly once.

        Args:
            rows: b, the first dimension of everything in the forward pass.
            losses: Runs the forward pass and returns the losses ``(b,)``, of which row i alone enters the i-th.
            sink: Receives blocks of g rows in the order of the backward pass.
            groups: Numbers of consecutive rows that are summed into one, g in all; None: every row stands alone.

        Returns:
            Names of parameters whose module was never called. Their gradients are zero, unless the model uses them in
            another way: a comparison with plain gradients tells.

        Raises:
            UnsupportedModel: A module's input does not have the b rows in front.
        """
        with frozen(self._model), torch.enable_grad():
            state = _Pass(self._slots, rows, sink, groups)
            handles = [
                tapped.module.register_forward_hook(state.hook(tapped), with_kwargs=True) for tapped in self._tapped
            ]
            try:
                total = losses().sum()
                state.counting = False
                if total.requires_grad:
                    torch.autograd.grad(total, [state.anchor], allow_unused=True)
            finally:
                for handle in handles:
                    handle.remove()
        return state.finish()


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


class _Tap(torch.autograd.Function):
    """The identity on a module's output that hands input and output gradient on."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, output: Tensor, inputs: Tensor, arrived: Any) -> Tensor:
        """``anchor`` requires a gradient, and so does whatever is tapped, even where nothing before it does."""
        del anchor
        ctx.save_for_backward(inputs)
        ctx.arrived = arrived
        return output.detach()  # shares memory; unlike a view, it may be changed in place later

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (inputs,) = ctx.saved_tensors
        ctx.arrived(inputs, gradients[0])
        return None, gradients[0], None, None


class _Pass:
    """What one forward and backward pass has collected: pieces of each parameter's gradient, one a use."""

    def __init__(self, slots: dict[nn.Parameter, Slot], rows: int, sink: Sink, groups: Sequence[int] | None) -> None:
        self.anchor = torch.zeros((), requires_grad=True)
        self.counting = True  # off in the backward pass, where checkpointing calls modules again
        self._slots, self._rows, self._sink, self._groups = slots, rows, sink, groups
        self._width: int | None = None  # t, once a tensor (b, t, ...) has been seen
        self._uses: Counter[nn.Parameter] = Counter()
        self._pieces: dict[nn.Parameter, list[Piece]] = {parameter: [] for parameter in slots}

    def hook(self, tapped: TappedModule) -> ForwardHook:
        """The forward hook that taps a module."""

        def arrived(inputs: Tensor, gradient: Tensor) -> None:
            self._collect(tapped, inputs, gradient)

        def forward_hook(
            module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Tensor
        ) -> Tensor | None:
            del module
            if not torch.is_grad_enabled():  # a rule that probes its module
                return None
            if len(inputs) != 1 or options:
                raise UnsupportedModel(f"{tapped.name} is called with something else than one input")
            given, output = (self._with_rows(tapped.name, values) for values in (inputs[0].detach(), output))
            if self.counting:
                self._uses.update(tapped.parameters.values())
            result: Tensor = _Tap.apply(self.anchor, output, given, arrived)  # type: ignore[no-untyped-call]
            return result

        return forward_hook

    def finish(self) -> frozenset[str]:
        """Stream what the loss does not depend on, which is zero, or does through some of its uses only.

        Returns the names of parameters without any use.
        """
        for parameter in list(self._pieces):
            self._stream(parameter)
        return frozenset(slot.name for parameter, slot in self._slots.items() if not self._uses[parameter])

    def _with_rows(self, name: str, values: Tensor) -> Tensor:
        """The tensor, once a row where the whole batch shares it (GPT-2's position embeddings).

        One of all positions in one dimension (experts that all tokens share) stays as it is for now.
        """
        if values.shape[:1] == (1,):
            return values.expand(self._rows, *values.shape[1:])
        if values.shape[:1] == (self._rows,):
            self._width = self._width or (values.shape[1] if values.ndim > 2 else None)
        elif self._width is None or values.ndim != 2 or values.shape[0] != self._rows * self._width:
            raise UnsupportedModel(f"{name} sees a tensor of shape {tuple(values.shape)} in a batch of {self._rows}")
        return values

    def _collect(self, tapped: TappedModule, inputs: Tensor, gradient: Tensor) -> None:
        if inputs.shape[0] != self._rows:
            inputs, gradient = (values.reshape(self._rows, -1, values.shape[-1]) for values in (inputs, gradient))
        pieces = tapped.rule(tapped.module, inputs, gradient)
        for name, parameter in tapped.parameters.items():
            self._pieces[parameter].append(pieces[name])
            if len(self._pieces[parameter]) == self._uses[parameter]:
                self._stream(parameter)

    def _stream(self, parameter: nn.Parameter) -> None:
        """Hand the sum of a parameter's pieces to the sink, a bounded range at a time."""
        length, width = parameter.shape[0], parameter[0].numel()

        def nothing(start: int, stop: int) -> Tensor:
            return torch.zeros(self._rows, stop - start, width, device=parameter.device)

        pieces = self._pieces.pop(parameter) or [nothing]
        section = section_rows(parameter)
        step = max(1, BLOCK_VALUES // (self._rows * width * section)) * section
        for start in range(0, length, step):
            stop = min(start + step, length)
            block = reduce(torch.add, (piece(start, stop).flatten(1) for piece in pieces))  # (b, n)
            if self._groups is not None:
                block = torch.stack([rows.sum(dim=0) for rows in torch.split(block, list(self._groups))])
            self._sink(block, self._slots[parameter].offset + start * width)


def parameter_slots(model: nn.Module) -> dict[nn.Parameter, Slot]:
    """Where the trainable parameters lie in the parameter index."""
    slots: dict[nn.Parameter, Slot] = {}
    end = 0
    for name, parameter in trainable_parameters(model):
        slots[parameter] = Slot(name, end)
        end += parameter.numel()
    return slots


def section_rows(parameter: Tensor) -> int:
    """Rows of a parameter's first dimension in each of its sections, of which the last may be shorter.

    A block that reaches a sink is made of whole sections. Where they end depends on the parameter's shape alone, so
    that what is rounded section by section (grids of raw gradients) or summed piece by piece has the same bits in any
    batch.
    """
    width = parameter[0].numel()
    return whole_pieces(max(1, SECTION_VALUES // width), width)


def section_starts(model: nn.Module) -> list[int]:
    """Parameter index of the first value of every section, in ascending order."""
    starts: list[int] = []
    for parameter, slot in parameter_slots(model).items():
        size = section_rows(parameter) * parameter[0].numel()
        starts.extend(range(slot.offset, slot.offset + parameter.numel(), size))
    return starts


def _tapped_modules(model: nn.Module, slots: dict[nn.Parameter, Slot]) -> list[TappedModule]:
    tapped = []
    for name, module in model.named_modules():
        own = {key: value for key, value in module.named_parameters(recurse=False) if value in slots}
        if not own:
            continue
        rule = find_rule(module)
        if rule is None:
            raise UnsupportedModel(f"{name} is a {type(module).__name__}")
        tapped.append(TappedModule(name, module, rule, own))
    return tapped
