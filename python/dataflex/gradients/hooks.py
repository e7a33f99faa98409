"""Per-sample gradients of a whole batch from one forward and one backward pass.

Every module that owns a trainable parameter is tapped: the identity is put on its output, and in the backward pass it
hands the module's input and output gradient to the module's rule (:mod:`dataflex.gradients.rules`). The block of
gradients that comes out goes to a sink and is freed. The parameters are frozen during the pass, so that autograd
computes no weight gradient, and the pass goes back no further than the first tapped module.

A parameter that is used more than once (tied embeddings, a module that is called twice) reaches the sink when the last
of its uses has come, as their sum. Autograd keeps the tapped inputs as it keeps any saved tensor, so that layers under
(non-reentrant) checkpointing keep none and hand on the recomputed one.

A router of experts returns scores and choices, both of its logits, which it returns, too: theirs is the gradient that
its rule is for, and it is taken from the logits where it passes.

What the rules do not cover is refused with :class:`UnsupportedModel`; the caller then takes one backward pass a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from dataflex.gradients.experts import experts, routed_inputs, router
from dataflex.gradients.rules import Rule, dora, dora_output, find_rule, owned_parameters, picked
from dataflex.gradients.slots import Pick, Piece, Slot, everything, parameter_slots

Sink = Callable[[Tensor, int], None]
"""Takes a block ``(g, n)``, float32 or wider, and the parameter index of its first column."""

ForwardHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]

BLOCK_VALUES = 1 << 24
"""Most gradients (b x n) that a rule makes at once: 64 MiB in float32 (a section of many rows may be larger)."""


class UnsupportedModel(Exception):  # noqa: N818 -- control flow between two paths, never shown as an error
    """The rules do not give this model's per-sample gradients; the message says why."""


@dataclass(frozen=True, slots=True)
class TappedModule:
    """A module with trainable parameters, whose slots are by their names in it, and the rule for their gradients."""

    name: str
    module: nn.Module
    rule: Rule
    slots: dict[str, Slot]

    def pieces(self, inputs: tuple[Tensor, ...], gradient: Tensor) -> dict[str, Piece]:
        """A piece for each of the slots."""
        if not any(slot.picks for slot in self.slots.values()):
            return self.rule(self.module, *inputs, gradient)
        whole = {} if all(slot.picks for slot in self.slots.values()) else self.rule(self.module, *inputs, gradient)
        return whole | {
            name: picked(self.rule, self.module, inputs, gradient, name, slot.picks)
            for name, slot in self.slots.items()
            if slot.picks
        }


class BatchedGradients:
    """Streams the per-sample gradients of a batch, parameter by parameter.

    Args:
        model: Model whose trainable parameters all belong to modules with a rule (LoRA's A and B are linear layers).
        pick: Coordinates of a parameter, by its place and shape.

    Raises:
        UnsupportedModel: Another kind of module owns a trainable parameter.
    """

    def __init__(self, model: nn.Module, pick: Pick = everything) -> None:
        self._slots = parameter_slots(model, pick)
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
        with frozen(self._slots), torch.enable_grad():
            state = _Pass(list(self._slots.values()), rows, sink, groups, next(iter(self._slots)).device)
            handles = [
                tapped.module.register_forward_hook(state.hook(tapped), with_kwargs=True) for tapped in self._tapped
            ]
            handles += [
                tapped.module.register_forward_pre_hook(before, with_kwargs=True)
                for rule, before in ((dora, state.before_dora), (router, state.before_router))
                for tapped in self._tapped
                if tapped.rule is rule
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
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """``requires_grad`` off for trainable parameters inside the block."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class _Tap(torch.autograd.Function):
    """The identity on a module's output that hands inputs and output gradient on."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, output: Tensor, arrived: Any, *inputs: Tensor) -> Tensor:
        """``anchor`` requires a gradient, and so does whatever is tapped, even where nothing before it does."""
        del anchor
        ctx.save_for_backward(*inputs)
        ctx.arrived = arrived
        return output.detach()  # shares memory; unlike a view, it may be changed in place later

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        ctx.arrived(inputs, gradients[0])
        return None, gradients[0], None, *(None for _ in inputs)


class _Kept(torch.autograd.Function):
    """The identity on a module's input, which autograd keeps for one that asks (checkpointing allows no more)."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, values: Tensor) -> Tensor:
        """As for :class:`_Tap`, the outcome requires a gradient."""
        del anchor
        ctx.save_for_backward(values)
        return values.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        del ctx
        return None, gradients[0]


class _Pass:
    """What one forward and backward pass has collected: pieces of each parameter's gradient, one a use."""

    def __init__(
        self,
        slots: Sequence[Slot],
        rows: int,
        sink: Sink,
        groups: Sequence[int] | None,
        device: torch.device,
    ) -> None:
        self.anchor = torch.zeros((), requires_grad=True)
        self.counting = True  # off in the backward pass, where checkpointing calls modules again
        self._slots, self._device = slots, device
        self._rows, self._sink, self._groups = rows, sink, groups
        self._width: int | None = None  # t, once a tensor (b, t, ...) has been seen
        self._uses = [0] * len(slots)  # of each parameter
        self._constants: set[nn.Module] = set()  # whose next call matters to no gradient
        self._pieces: dict[int, list[Piece]] = {slot.number: [] for slot in slots}

    def hook(self, tapped: TappedModule) -> ForwardHook:
        """The forward hook that taps a module."""

        def arrived(inputs: tuple[Tensor, ...], gradient: Tensor) -> None:
            self._collect(tapped, inputs, gradient)

        def forward_hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> Any:
            if module in self._constants or not torch.is_grad_enabled():  # in the latter a rule probes its module
                self._constants.discard(module)
                return None
            found = _given(tapped, inputs, options, output)
            if found is None:
                raise UnsupportedModel(f"{tapped.name} is called with something else than one input")
            given = tuple(self._with_rows(tapped, values) for values in found)
            if self.counting:
                for slot in tapped.slots.values():
                    self._uses[slot.number] += 1
            if tapped.rule is router and isinstance(output, tuple):
                return self._tap_logits(tapped, inputs[0], output[0], arrived)
            output = self._with_rows(tapped, output)
            return _Tap.apply(self.anchor, output, arrived, *given)  # type: ignore[no-untyped-call]

        return forward_hook

    def before_router(
        self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Let a router's logits have a gradient, and autograd keep its input."""
        del module
        if not inputs or not torch.is_grad_enabled():
            return None
        return (_Kept.apply(self.anchor, inputs[0]), *inputs[1:]), options  # type: ignore[no-untyped-call]

    def _tap_logits(self, tapped: TappedModule, kept: Tensor, logits: Any, arrived: Any) -> None:
        """Collect where the gradient of a router's logits passes, which scores and choices come of."""
        if not isinstance(logits, Tensor) or not logits.requires_grad:
            raise UnsupportedModel(f"{tapped.name} does not return its logits first")
        self._with_rows(tapped, logits)
        node: Any = kept.grad_fn
        logits.register_hook(lambda gradient: arrived(node.saved_tensors, gradient))  # type: ignore[no-untyped-call]

    def before_dora(self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Peft's layer first calls A and B for the norms of their product, which are constants."""
        del module, inputs
        self._constants |= {options["lora_A"], options["lora_B"]}

    def finish(self) -> frozenset[str]:
        """Stream what the loss does not depend on, which is zero, or does through some of its uses only.

        Returns the names of parameters without any use.
        """
        for number in list(self._pieces):
            self._stream(self._slots[number])
        return frozenset(slot.name for slot in self._slots if not self._uses[slot.number])

    def _with_rows(self, tapped: TappedModule, values: Tensor) -> Tensor:
        """The tensor, once a row where the whole batch shares it (GPT-2's position embeddings).

        One of all positions in one dimension (experts, and what all tokens share) stays as it is for now. Experts and
        their routers never see another one, so that theirs tells t where nothing else has.
        """
        first = values.shape[0] if values.ndim else 0
        if first == 1:
            return values.expand(self._rows, *values.shape[1:])
        if first == self._rows:
            self._width = self._width or (values.shape[1] if values.ndim > 2 else None)
        elif tapped.rule in (experts, router) and values.ndim == 2 and not (self._width or first % self._rows):
            self._width = first // self._rows
        elif self._width is None or values.ndim != 2 or first != self._rows * self._width:
            shape = tuple(values.shape)
            raise UnsupportedModel(f"{tapped.name} sees a tensor of shape {shape} in a batch of {self._rows}")
        return values

    def _collect(self, tapped: TappedModule, inputs: tuple[Tensor, ...], gradient: Tensor) -> None:
        if any(values.shape[0] != self._rows for values in (*inputs, gradient)):
            every = [values.reshape(self._rows, -1, values.shape[-1]) for values in (*inputs, gradient)]
            inputs, gradient = tuple(every[:-1]), every[-1]
        pieces = tapped.pieces(inputs, gradient)
        for name, slot in tapped.slots.items():
            found = self._pieces[slot.number]
            found.append(pieces[name])
            if len(found) == self._uses[slot.number]:
                self._stream(slot)

    def _stream(self, slot: Slot) -> None:
        """Hand the sum of a parameter's pieces to the sink, a bounded range at a time."""

        def nothing(start: int, stop: int) -> Tensor:
            return torch.zeros(self._rows, stop - start, slot.width, device=self._device)

        pieces = self._pieces.pop(slot.number) or [nothing]
        step = max(1, BLOCK_VALUES // (self._rows * slot.width * slot.section)) * slot.section
        for start in range(0, slot.rows, step):
            stop = min(start + step, slot.rows)
            block = reduce(torch.add, (piece(start, stop).flatten(1) for piece in pieces))  # (b, n)
            if self._groups is not None:
                block = torch.stack([rows.sum(dim=0) for rows in torch.split(block, list(self._groups))])
            self._sink(block, slot.offset + start * slot.width)


def _given(
    tapped: TappedModule, inputs: tuple[Any, ...], options: dict[str, Any], output: Any
) -> tuple[Tensor, ...] | None:
    """What a rule wants of a call of its module, None where the call is another."""
    if tapped.rule is experts:
        try:
            return routed_inputs(*inputs, **options)
        except TypeError:
            return None
    if tapped.rule is router and inputs:  # beside the tokens, some are given constants
        return (inputs[0].detach(),)
    found = dora_output(options, output) if tapped.rule is dora else _only(inputs, options)
    return None if found is None else (found,)


def _only(inputs: tuple[Any, ...], options: dict[str, Any]) -> Tensor | None:
    """The one input of a call, None where there is more."""
    return None if len(inputs) != 1 or options else inputs[0].detach()


def _tapped_modules(model: nn.Module, slots: dict[nn.Parameter, Slot]) -> list[TappedModule]:
    tapped: list[TappedModule] = []
    inner: set[nn.Parameter] = set()  # of modules that another one's rule is for, which comes before them
    for name, module in model.named_modules():
        found = [(key, value) for key, value in owned_parameters(module) if value in slots and value not in inner]
        inner |= {value for _, value in found} - set(module.parameters(recurse=False))
        own = {key: slots[value] for key, value in found}
        if not own:
            continue
        rule = find_rule(module)
        if rule is None:
            raise UnsupportedModel(f"{name} is a {type(module).__name__}")
        tapped.append(TappedModule(name, module, rule, own))
    return tapped
