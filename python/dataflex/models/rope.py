"""Rotary frequencies that depend on a sequence's length: longrope and dynamic scaling.

transformers chooses the frequencies of a forward pass by the largest position in the batch, padding included:

- ``longrope`` (Phi-3-128k): one set up to the length of pretraining, another beyond it, for all rows of the batch;
- ``dynamic`` (NTK-aware scaling): beyond the original length L a set for every length, which stays for later, shorter
  rows down to L.

A row's losses and gradients then depend on its neighbours and on what the model saw before; a resumed run, which saw
something else, gives other values. Here a row has the frequencies of its own length, as in a batch of one of a model
that is freshly loaded: rows of one pass are of one *length class* (:func:`length_class`), and the pass runs inside
:func:`at_length`, which first makes the rotary modules forget, and then shows them one more position, the last one of
that length, whose rotation is dropped.

An answer is drawn, and differentiated, with the frequencies of its *horizon*: the tokens that prompt and answer may
have. Otherwise frequencies would change while it grows, and no single pass could tell how likely its tokens were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import GenerationMixin

from dataflex.models.model import base_model

LengthClass = tuple[int, ...]
"""Rows with equal classes have equal frequencies; ``()`` where frequencies do not depend on length."""


@dataclass(frozen=True, slots=True)
class ScaledRotary:
    """A rotary module whose frequencies depend on length.

    Attributes:
        module: Maps ``(x, position_ids)`` to rotations.
        limits: Kind of scaling (``longrope`` or ``dynamic``) and the last length without it, for each type of layer.
    """

    module: nn.Module
    limits: tuple[tuple[str, int], ...]

    def length_class(self, length: int) -> LengthClass:
        """0 up to a limit; beyond it 1, or the length itself where every length has frequencies of its own."""
        return tuple(0 if length <= limit else 1 if kind == "longrope" else length for kind, limit in self.limits)


_found: WeakKeyDictionary[nn.Module, list[ScaledRotary]] = WeakKeyDictionary()


def scaled_rotaries(model: nn.Module) -> list[ScaledRotary]:
    """The rotary modules of a model whose frequencies depend on length; of most models there are none.

    They are looked for once a model: every forward pass asks, and the walk through a model with adapters on 28 layers
    takes 6 ms.

    Args:
        model: Causal language model, wrapped or not.
    """
    base = base_model(model)
    if base not in _found:
        _found[base] = _scaled_rotaries(base)
    return _found[base]


def _scaled_rotaries(model: nn.Module) -> list[ScaledRotary]:
    found = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        parameters: Any = getattr(getattr(module, "config", None), "rope_parameters", None)
        if kinds is None or not isinstance(parameters, dict):
            continue
        layers = [(kinds, parameters)] if isinstance(kinds, str) else [(kinds[key], parameters[key]) for key in kinds]
        limits = tuple(
            (kind, _limit(module, kind, settings)) for kind, settings in layers if kind in ("longrope", "dynamic")
        )
        if limits:
            found.append(ScaledRotary(module, limits))
    return found


def length_class(rotaries: Sequence[ScaledRotary], length: int) -> LengthClass:
    """The class of a length; only rows of equal class may share a forward pass.

    Args:
        rotaries: The model's :func:`scaled_rotaries`.
        length: Number of tokens.
    """
    return tuple(key for rotary in rotaries for key in rotary.length_class(length))


def by_length_class(model: nn.Module, attention_mask: Tensor, run: Callable[[list[int]], Tensor]) -> Tensor:
    """Run a pass over the rows of a batch, those of each length class on their own.

    Args:
        model: Causal language model, wrapped or not.
        attention_mask: ``(b, t)`` int64, tokens on the left and padding on the right.
        run: Maps the numbers of some rows to a tensor with these rows in front.

    Returns:
        What ``run`` gives for all b rows, in their order.
    """
    rotaries = scaled_rotaries(model)
    if not rotaries:
        return run(list(range(len(attention_mask))))
    lengths: list[int] = attention_mask.sum(dim=1).tolist()
    classes = [length_class(rotaries, length) for length in lengths]
    parts: list[Tensor] = []
    rows: list[int] = []
    for one in sorted(set(classes)):
        members = [row for row, own in enumerate(classes) if own == one]
        rows += members
        with at_length(model, max(lengths[row] for row in members)):
            parts.append(run(members))
    return parts[0] if len(parts) == 1 else torch.cat(parts)[torch.tensor(rows).argsort().to(parts[0].device)]


@contextmanager
def at_length(model: nn.Module, length: int) -> Iterator[None]:
    """Forward passes inside use the frequencies of a fresh model and a single row of ``length`` tokens.

    Args:
        model: Causal language model, wrapped or not.
        length: Tokens, at least those of the longest row.
    """
    with ExitStack() as stack:
        for rotary in scaled_rotaries(model):
            passes = _FixedLength(length)
            before = rotary.module.register_forward_pre_hook(passes.lengthen, with_kwargs=True)
            after = rotary.module.register_forward_hook(passes.shorten)
            stack.callback(before.remove)
            stack.callback(after.remove)
            if any(kind == "dynamic" for kind, _ in rotary.limits):
                stack.callback(_forget, rotary.module)
                _forget(rotary.module)
        yield


@contextmanager
def growing_to(model: nn.Module, length: int) -> Iterator[None]:
    """:func:`at_length` for ``generate``, whose sequences grow up to ``length`` tokens.

    Phi-3's models forget their keys and values where a sequence crosses the limit, as the frequencies change there;
    transformers 5.19 then goes on with the last token alone. Here they do not change, so nothing is forgotten.
    """
    base: Any = base_model(model)
    with at_length(model, length), ExitStack() as stack:
        if hasattr(getattr(base, "config", None), "original_max_position_embeddings"):
            stack.callback(delattr, base, "prepare_inputs_for_generation")
            base.prepare_inputs_for_generation = partial(GenerationMixin.prepare_inputs_for_generation, base)
        yield


class _FixedLength:
    """Hooks around a rotary module: one more position goes in, its rotation does not come out.

    Positions beyond the length are those of padding, and count for nothing.
    """

    def __init__(self, length: int) -> None:
        self._last = length - 1

    def lengthen(
        self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make the last position of the length the largest of ``position_ids`` ``(..., t)``."""
        del module
        if "position_ids" in options:
            return inputs, options | {"position_ids": self._with_last(options["position_ids"])}
        return (inputs[0], self._with_last(inputs[1]), *inputs[2:]), options

    def shorten(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        """Drop the last of t + 1 rotations, ``(..., t + 1, d)`` each."""
        del module, inputs
        return output[..., :-1, :] if isinstance(output, Tensor) else tuple(part[..., :-1, :] for part in output)

    def _with_last(self, positions: Tensor) -> Tensor:
        last = torch.full_like(positions[..., :1], self._last)
        return torch.cat([positions.clamp_max(self._last), last], dim=-1)


def _forget(module: nn.Module) -> None:
    """Put dynamic frequencies back to those of short sequences, which transformers does for some lengths only."""
    kinds: Any = module.rope_type
    original = module.original_max_seq_len
    for prefix in [""] if isinstance(kinds, str) else [f"{key}_" for key in kinds]:
        frequencies = getattr(module, f"{prefix}original_inv_freq", None)
        if frequencies is not None:
            setattr(module, f"{prefix}inv_freq", frequencies.to(getattr(module, f"{prefix}inv_freq").device))
            setattr(module, f"{prefix}max_seq_len_cached", original)


def _limit(module: nn.Module, kind: str, settings: dict[str, Any]) -> int:
    """The last length without scaling."""
    if kind == "longrope":
        return int(settings["original_max_position_embeddings"])
    return int(module.original_max_seq_len)  # type: ignore[arg-type]
