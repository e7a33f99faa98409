"""Per-row parameter gradients of one module, from what passes through it.

Row i of a batch enters the loss L_i alone, so the gradient of sum_i L_i with respect to row i of a module's output is
that of L_i, and with it the row's parameter gradient follows from the module's input alone (Goodfellow 2015,
arXiv 1510.01799). With inputs a and output gradients d, both with the b rows in front:

========= ================= =================================================================
module    y                 gradients of a row (sums over its positions t)
========= ================= =================================================================
Linear    a W^T + c         W: sum_t d_t a_t^T       c: sum_t d_t
Conv1D    a W + c           W: sum_t a_t d_t^T       c: sum_t d_t          (GPT-2's layers)
Embedding s W[a]            W[v]: s sum_{t: a_t = v} d_t, nothing for the padding index
norms     w * n(a) + c      w: sum_t d_t * n(a_t)    c: sum_t d_t          (layer and RMS norms)
LoRA of E s (B A[a])        A[:, v]: s sum_{t: a_t = v} B^T d_t    B: s sum_t d_t A[:, a_t]^T
DoRA      (m / |V|) * v(a)  m: sum_t d_t * y_t / m                         (peft's magnitudes, |V| a constant)
experts   sum w D h(U a)    :mod:`dataflex.gradients.experts`
========= ================= =================================================================

A rule gives every parameter as a :data:`Piece`, which makes any range of the parameter's first dimension when asked: a
vocabulary's b x V x d gradients never exist at once. :func:`picked` makes one of some of a matrix's rows and columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora.dora import DoraLinearLayer
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from dataflex.gradients.experts import routed_parameters, routed_rule
from dataflex.gradients.slots import Piece
from dataflex.projection.picks import Picks

Rule = Callable[..., dict[str, Piece]]
"""Maps (module, input ``(b, ...)``, output gradient ``(b, ..., out)``) to a piece for each of its parameters; experts
have three inputs."""


def find_rule(module: nn.Module) -> Rule | None:
    """The rule of a module, or None. Subclasses are not their parents: they may compute something else.

    The exceptions are by duty, not by name alone: embeddings that scale their output (Gemma), and RMS norms, which
    every family of models defines anew; theirs is probed (:func:`norm`).
    """
    if type(module) is nn.Linear:
        return linear
    if type(module) is Conv1D:
        return conv1d
    if isinstance(module, nn.Embedding):
        known = type(module) is nn.Embedding or hasattr(module, "embed_scale")
        return embedding if known and module.max_norm is None and not module.scale_grad_by_freq else None
    if type(module) is nn.LayerNorm or "RMSNorm" in type(module).__name__:
        parameters = dict(module.named_parameters(recurse=False))
        vectors = all(parameter.ndim == 1 for parameter in parameters.values())
        return norm if vectors and set(parameters) in ({"weight"}, {"weight", "bias"}) else None
    if type(module) is LoraEmbedding:
        return lora_embedding if set(module.lora_embedding_A) == set(module.active_adapters) else None
    return dora if type(module) is DoraLinearLayer else routed_rule(module)


def owned_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a module's rule is for, by their names in the rule: its own, as a rule.

    LoRA on an embedding, or on parameters of experts, keeps its matrices in modules that are never called.
    """
    if type(module) is LoraEmbedding and len(module.active_adapters) == 1:
        (adapter,) = module.active_adapters
        yield "A", module.lora_embedding_A[adapter]
        yield "B", module.lora_embedding_B[adapter]
    yield from routed_parameters(module)
    yield from module.named_parameters(recurse=False)


def linear(module: nn.Linear, inputs: Tensor, gradient: Tensor) -> dict[str, Piece]:
    """Y = a W^T + c with W ``(out, in)``."""
    del module
    outgoing = _positions(gradient)  # (b, t, out)
    incoming = _positions(inputs).to(outgoing.dtype)  # (b, t, in)
    return {
        "weight": lambda start, stop: torch.bmm(outgoing[:, :, start:stop].mT, incoming),
        "bias": lambda start, stop: outgoing[:, :, start:stop].sum(dim=1),
    }


def conv1d(module: Conv1D, inputs: Tensor, gradient: Tensor) -> dict[str, Piece]:
    """Y = a W + c with W ``(in, out)``."""
    del module
    outgoing = _positions(gradient)  # (b, t, out)
    incoming = _positions(inputs).to(outgoing.dtype)  # (b, t, in)
    return {
        "weight": lambda start, stop: torch.bmm(incoming[:, :, start:stop].mT, outgoing),
        "bias": lambda start, stop: outgoing[:, :, start:stop].sum(dim=1),
    }


def embedding(module: nn.Embedding, inputs: Tensor, gradient: Tensor) -> dict[str, Piece]:
    """Y = s W[a] with W ``(V, d)``, ids a ``(b, t)``, and s the module's ``embed_scale``, 1 without one.

    On a GPU the repeats of one id in a row are added in no fixed order.
    """
    return {"weight": _by_id(_without_padding(module, inputs), _scaled(module, gradient))}


def picked(rule: Rule, module: Any, given: tuple[Tensor, ...], gradient: Tensor, name: str, picks: Picks) -> Piece:
    """The piece of a matrix at some of its rows and columns; a rule without a way to them makes the whole matrix."""
    inputs = given[0]
    if rule is linear:
        return linear(module, inputs[..., picks.columns], gradient[..., picks.rows])["weight"]
    if rule is conv1d:
        return conv1d(module, inputs[..., picks.rows], gradient[..., picks.columns])["weight"]
    if rule is not embedding:
        rows, whole = len(dict(owned_parameters(module))[name]), rule(module, *given, gradient)[name]
        return lambda start, stop: whole(0, rows)[:, picks.rows[start:stop]][..., picks.columns]
    places = torch.full((module.num_embeddings + 1,), -1, device=inputs.device)  # the last is that of id -1
    places[picks.rows] = torch.arange(len(picks.rows), device=inputs.device)
    return _by_id(places[_without_padding(module, inputs)], _scaled(module, gradient[..., picks.columns]))


def _without_padding(module: nn.Embedding, ids: Tensor) -> Tensor:
    """The ids, -1 in place of the padding index."""
    return ids if module.padding_idx is None else ids.masked_fill(ids == module.padding_idx, -1)


def _scaled(module: nn.Embedding, gradient: Tensor) -> Tensor:
    """``(b, t, d)``: the output gradients times the module's ``embed_scale``, as the module rounds it."""
    scale = torch.as_tensor(getattr(module, "embed_scale", 1.0)).to(module.weight.dtype)
    return _positions(gradient) * float(scale)


def _by_id(inputs: Tensor, outgoing: Tensor) -> Piece:
    """Sums of ``(b, t, d)`` over the positions of each id of ``(b, t)``; those below 0 are no one's."""
    rows, width = outgoing.shape[0], outgoing.shape[2]
    row = torch.arange(rows, device=inputs.device).repeat_interleave(outgoing.shape[1])  # (b * t,)
    ids, order = inputs.flatten().sort(stable=True)  # so that a range of the vocabulary is a range of positions
    row, values = row[order], outgoing.flatten(0, 1)[order]

    def weight(start: int, stop: int) -> Tensor:
        first, last = torch.searchsorted(ids, torch.tensor([start, stop], device=ids.device)).tolist()
        piece = values.new_zeros(rows * (stop - start), width)
        piece.index_add_(0, row[first:last] * (stop - start) + ids[first:last] - start, values[first:last])
        return piece.view(rows, stop - start, width)

    return weight


def norm(module: nn.Module, inputs: Tensor, gradient: Tensor) -> dict[str, Piece]:
    """Y = w * n(a) + c with w ``(n,)``, or (1 + w) * n(a), as Gemma has it.

    Either is affine in w, so that n(a) is the difference between the outputs for w = 1 and w = 0.
    """
    outgoing = gradient.to(_wide(gradient))
    zeros = {
        name: torch.zeros_like(parameter, dtype=outgoing.dtype)
        for name, parameter in module.named_parameters(recurse=False)
    }
    ones = zeros | {"weight": torch.ones_like(zeros["weight"])}
    wide = inputs.to(outgoing.dtype)
    at_one, at_zero = (torch.func.functional_call(module, values, (wide,)) for values in (ones, zeros))
    scaled = _positions(outgoing * (at_one - at_zero))  # (b, t, n)
    return {
        "weight": lambda start, stop: scaled[:, :, start:stop].sum(dim=1),
        "bias": lambda start, stop: _positions(outgoing)[:, :, start:stop].sum(dim=1),
    }


def lora_embedding(module: LoraEmbedding, inputs: Tensor, gradient: Tensor) -> dict[str, Piece]:
    """Y = E[a] + s (B A[:, a]) with A ``(r, V)`` and B ``(d, r)`` of peft; s has the embedding's own scale, too."""
    (adapter,) = module.active_adapters
    base: Any = module.get_base_layer()
    outgoing = _scaled(base, gradient) * module.scaling[adapter]  # (b, t, d)
    first, second = (
        values[adapter].detach().to(outgoing.dtype) for values in (module.lora_embedding_A, module.lora_embedding_B)
    )
    inner, looked_up = outgoing @ second, first.T[inputs]  # (b, t, r)
    ids = _without_padding(base, inputs)
    return {
        "A": lambda start, stop: _by_id(ids, inner[:, :, start:stop])(0, first.shape[1]).mT,
        "B": lambda start, stop: torch.bmm(outgoing[:, :, start:stop].mT, looked_up),
    }


def dora(module: DoraLinearLayer, inputs: Tensor, gradient: Tensor) -> dict[str, Piece]:
    """Y = (m / |V|) * v(a) with the magnitudes m ``(out,)`` of DoRA (arXiv 2402.09353); ``inputs`` is y itself.

    As in section 4.3 of the paper, and in peft, the norms |V| are constants in the backward pass.
    """
    outgoing = _positions(gradient)  # (b, t, out)
    outputs = outgoing * _positions(inputs).to(outgoing.dtype)
    magnitudes = module.weight.detach().to(outgoing.dtype)
    return {"weight": lambda start, stop: outputs[:, :, start:stop].sum(dim=1) / magnitudes[start:stop]}


def dora_output(options: Mapping[str, Any], added: Tensor) -> Tensor | None:
    """What :func:`dora` wants of a call of peft's layer, which returns what is ``added`` to the base layer's output.

    None where it was not given that output, as with dropout in training.
    """
    base, bias = options.get("base_result"), options["base_layer"].bias
    return None if base is None else (base if bias is None else base - bias).detach() + added.detach()


def _positions(values: Tensor) -> Tensor:
    """``(b, ..., n)`` as ``(b, t, n)``, float32 or wider; t is 1 for ``(b, n)``."""
    flat = values[:, None] if values.ndim == 2 else values.flatten(1, -2)
    return flat.to(_wide(values))


def _wide(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
