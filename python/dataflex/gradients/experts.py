"""Per-row gradients of mixtures of experts, whose weights are one parameter of three dimensions a layer.

A router sends each token to some of the experts; with its weight w and the expert's matrices U and D,

    y = sum over a token's experts e of  w_e D_e h(U_e a),

as the experts' modules of transformers have it, which all take tokens ``(b t, d)``, numbers of experts and weights
``(b t, k)``, and share an interface (``transformers.integrations.moe``): names, orientation and the gate h. Routing
says which row each pair of a token and an expert is from, and so, with the output gradient d,

    D_e: sum w_e d h^T      U_e: sum (h'(U_e a))^T (w_e D_e^T d) a^T      over the pairs of the row with e.

What is between U and D is computed again, a layer at a time. LoRA on such a parameter (peft's ``target_parameters``)
has a matrix pair an expert, and its gradients follow from the same two factors: with W_e + s B_e A_e for an input a and
an output gradient c, A_e: s sum (B_e^T c) a^T, B_e: s sum c (A_e a)^T.

A router's own weights act through its logits, the first of what it returns: their gradient is taken where it passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from dataflex.gradients.slots import Piece


def routed_rule(module: nn.Module) -> Callable[..., dict[str, Piece]] | None:
    """The rule of a module of experts or of a router, adapted or not; None for any other."""
    base, wrappers = stacked_module(module), _wrappers(module)
    if any(len(wrapper.lora_A) != 1 or wrapper.lora_bias[_adapter(wrapper)] for wrapper in wrappers):
        return None
    if hasattr(base, "_apply_gate") and hasattr(base, "is_transposed"):
        return None if getattr(base, "_is_expert_parallel", False) else experts
    routes = ("router" in type(base).__name__.lower() and hasattr(base, "weight")) or type(base) is nn.Linear
    return router if routes else None


def stacked_module(module: nn.Module) -> nn.Module:
    """The module whose parameters peft adapts by themselves, or ``module``."""
    base: nn.Module = module.get_base_layer() if isinstance(module, ParamWrapper) else module
    return base


def routed_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The matrices of LoRA on a module's parameters: ``NAME.A`` ``(e r, in)`` and ``NAME.B`` ``(out, r e)``."""
    for wrapper in _wrappers(module):
        adapter = _adapter(wrapper)
        yield f"{wrapper.parameter_name}.A", wrapper.lora_A[adapter].weight
        yield f"{wrapper.parameter_name}.B", wrapper.lora_B[adapter].weight


def routed_inputs(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What experts are called with, by position or by name, detached."""
    return hidden_states.detach(), top_k_index.detach(), top_k_weights.detach()


def experts(module: Any, hidden: Tensor, index: Tensor, weights: Tensor, gradient: Tensor) -> dict[str, Piece]:
    """Pieces of a module of experts.

    Args:
        module: It, or what wraps it.
        hidden: ``(b, t, d)`` or ``(b, d)`` tokens.
        index: ``(b, t, k)`` the experts of each.
        weights: ``(b, t, k)`` their weights.
        gradient: Of the output, as ``hidden``.
    """
    base: Any = stacked_module(module)
    wide = torch.promote_types(gradient.dtype, torch.float32)
    wrappers = {wrapper.parameter_name: wrapper for wrapper in _wrappers(module)}
    pairs = Pairs.of(index.reshape(len(gradient), -1), index.shape[-1], base.num_experts)
    first = "gate_up_proj" if base.has_gate else "up_proj"
    up, down = (_Stack(base, name, wrappers.get(name), wide) for name in (first, "down_proj"))
    incoming = hidden.reshape(-1, hidden.shape[-1])[pairs.tokens].to(wide)  # (s, d)
    shares = weights.flatten()[pairs.order, None].to(wide)  # (s, 1)
    outgoing = gradient.reshape(-1, gradient.shape[-1])[pairs.tokens].to(wide) * shares  # (s, d)
    inner = pairs.of_each(up.forward, incoming)  # (s, 2 n), or (s, n) without gates
    with torch.enable_grad():
        gated = (base._apply_gate if base.has_gate else base.act_fn)(inner.requires_grad_())  # (s, n)
    (between,) = torch.autograd.grad(gated, inner, pairs.of_each(down.backward, outgoing))
    return up.pieces(pairs, incoming, between) | down.pieces(pairs, gated.detach(), outgoing)


def router(module: Any, inputs: Tensor, gradient: Tensor) -> dict[str, Piece]:
    """Pieces of a router with W ``(e, d)``, from the gradients of its logits a W^T (+ c)."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    outgoing, incoming = (values.reshape(len(gradient), -1, values.shape[-1]).to(wide) for values in (gradient, inputs))
    pieces: dict[str, Piece] = {
        "weight": lambda start, stop: torch.bmm(outgoing[:, :, start:stop].mT, incoming),
        "bias": lambda start, stop: outgoing[:, :, start:stop].sum(dim=1),
    }
    for wrapper in _wrappers(module):
        first, second, scale = _factors(wrapper, wide)
        inner, seen = outgoing @ second[0] * scale, incoming @ first[0].T * scale  # (b, t, r)
        pieces["weight.A"] = lambda start, stop, inner=inner: torch.bmm(inner[:, :, start:stop].mT, incoming)  # type: ignore[misc]
        pieces["weight.B"] = lambda start, stop, seen=seen: torch.bmm(outgoing[:, :, start:stop].mT, seen)  # type: ignore[misc]
    return pieces


@dataclass(frozen=True)
class Pairs:
    """The s pairs of a token and an expert that it goes to, by expert, and by row of the batch for each.

    Attributes:
        rows: b.
        experts: e.
        order: ``(s,)`` the place of each pair in the flat ``(b, t, k)``.
        tokens: ``(s,)`` its token in the flat ``(b, t)``.
        groups: ``(s,)`` its group: b times its expert, plus its row.
        starts: ``(e b + 1,)`` the first pair of each group, and s.
    """

    rows: int
    experts: int
    order: Tensor
    tokens: Tensor
    groups: Tensor
    starts: Tensor

    @classmethod
    def of(cls, index: Tensor, choices: int, experts: int) -> Pairs:
        """The pairs of the experts of each row's tokens, ``(b, t k)``."""
        rows, width = index.shape
        row = torch.arange(rows, device=index.device).repeat_interleave(width)
        groups, order = (index.flatten() * rows + row).sort(stable=True)
        sizes = torch.bincount(groups, minlength=experts * rows)
        starts = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
        return cls(rows, experts, order, order // choices, groups, starts)

    @cached_property
    def _bounds(self) -> list[int]:
        """The first pair of each expert, and s."""
        bounds: list[int] = self.starts[:: self.rows].tolist()
        return bounds

    def of_each(self, function: Callable[[int, Tensor], Tensor], values: Tensor) -> Tensor:
        """A function of an expert's number and its pairs' values, for all of ``(s, n)``."""
        spans = zip(range(self.experts), self._bounds, self._bounds[1:], strict=False)
        return torch.cat([function(expert, values[start:stop]) for expert, start, stop in spans if stop > start])

    def products(self, outgoing: Tensor, incoming: Tensor, first: int, last: int) -> Tensor:
        """``(b, last - first, o, i)``: sums of outer products of ``(s, o)`` and ``(s, i)``, by row and expert."""
        start, stop = self._bounds[first], self._bounds[last]
        groups = self.groups[start:stop] - first * self.rows
        starts = self.starts[first * self.rows : last * self.rows]
        places = torch.arange(start, stop, device=groups.device) - starts[groups]  # of a pair in its group
        most = int(places.max()) + 1 if stop > start else 0

        def padded(values: Tensor) -> Tensor:
            filled = values.new_zeros(len(starts) * most, values.shape[1])
            return filled.index_copy_(0, groups * most + places, values[start:stop]).view(len(starts), most, -1)

        sums = torch.bmm(padded(outgoing).mT, padded(incoming))
        return sums.view(last - first, self.rows, *sums.shape[1:]).transpose(0, 1)


class _Stack:
    """A linear layer an expert, all in one parameter ``(e, out, in)``, or ``(e, in, out)``, with LoRA or without."""

    def __init__(self, base: Any, name: str, wrapper: Any | None, dtype: torch.dtype) -> None:
        self._name, self._weight, self._dtype = name, getattr(base, name).detach(), dtype
        self._bias = getattr(base, f"{name}_bias").detach() if base.has_bias else None
        self._transposed = base.is_transposed
        self._lora = None if wrapper is None else _factors(wrapper, dtype)

    def forward(self, expert: int, values: Tensor) -> Tensor:
        """Outputs ``(n, out)`` of an expert's inputs."""
        outputs = values @ self._matrix(expert).T
        return outputs if self._bias is None else outputs + self._bias[expert].to(self._dtype)

    def backward(self, expert: int, values: Tensor) -> Tensor:
        """Gradients ``(n, in)`` of an expert's inputs, from those of its outputs."""
        return values @ self._matrix(expert)

    def pieces(self, pairs: Pairs, incoming: Tensor, outgoing: Tensor) -> dict[str, Piece]:
        """From inputs ``(s, in)`` and output gradients ``(s, out)`` of all pairs."""
        ones = incoming.new_ones(len(incoming), 1)
        left, right = (incoming, outgoing) if self._transposed else (outgoing, incoming)
        found: dict[str, Piece] = {
            self._name: lambda start, stop: pairs.products(left, right, start, stop),
            f"{self._name}_bias": lambda start, stop: pairs.products(outgoing, ones, start, stop).squeeze(-1),
        }
        return found if self._lora is None else found | self._lora_pieces(pairs, incoming, outgoing, *self._lora)

    def _lora_pieces(
        self, pairs: Pairs, incoming: Tensor, outgoing: Tensor, first: Tensor, second: Tensor, scale: float
    ) -> dict[str, Piece]:
        rank = first.shape[1]
        inner = pairs.of_each(lambda expert, values: values @ second[expert], outgoing) * scale  # (s, r)
        seen = pairs.of_each(lambda expert, values: values @ first[expert].T, incoming) * scale  # (s, r)

        def of_a(start: int, stop: int) -> Tensor:  # rows e r of A are those of an expert one after the other
            begin = start // rank
            sums = pairs.products(inner, incoming, begin, -(-stop // rank))  # (b, e, r, in)
            return sums.flatten(1, 2)[:, start - begin * rank : stop - begin * rank]

        def of_b(start: int, stop: int) -> Tensor:  # columns r e of B are those of a rank one after the other
            sums = pairs.products(outgoing[:, start:stop], seen, 0, pairs.experts)  # (b, e, out, r)
            return sums.permute(0, 2, 3, 1).flatten(2)

        return {f"{self._name}.A": of_a, f"{self._name}.B": of_b}

    def _matrix(self, expert: int) -> Tensor:
        """``(out, in)`` an expert's matrix with its update."""
        matrix: Tensor = self._weight[expert].to(self._dtype)
        matrix = matrix.T if self._transposed else matrix
        if self._lora is None:
            return matrix
        first, second, scale = self._lora
        return torch.addmm(matrix, second[expert], first[expert], alpha=scale)


def _wrappers(module: nn.Module) -> list[Any]:
    """Peft's layers around a module's parameters, the outermost first: one a parameter."""
    found: list[Any] = []
    while isinstance(module, ParamWrapper):
        found.append(module)
        module = module.base_layer
    return found


def _adapter(wrapper: Any) -> str:
    name: str = next(iter(wrapper.lora_A))
    return name


def _factors(wrapper: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    """A ``(e, r, in)``, B ``(e, out, r)`` and the scale s of LoRA on a parameter; e is 1 for a matrix."""
    name = _adapter(wrapper)
    first, second = (values[name].weight.detach().to(dtype) for values in (wrapper.lora_A, wrapper.lora_B))
    by_expert = first.view(wrapper.num_experts, -1, first.shape[1])
    return by_expert, second.view(len(second), -1, wrapper.num_experts).permute(2, 0, 1), wrapper.scaling[name]
