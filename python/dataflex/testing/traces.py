"""What a component must leave as it found it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dataflex.testing.random_states import random_states, set_random_states


@contextmanager
def seeded_globals(seed: int) -> Iterator[None]:
    """Run the block with the global random states of torch (CPU), numpy and Python set by ``seed``; restored after."""
    before = random_states()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        set_random_states(before)


class Trace:
    """The state of a model, of its optimizer and of the global random numbers, to be compared later."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self._parts = model, optimizer
        self._before = _state(model, optimizer)

    def changes(self) -> list[str]:
        """What has changed since then, a line each."""
        after = _state(*self._parts)
        return [
            what
            for what in self._before.keys() | after.keys()
            if what not in self._before or what not in after or not _equal(self._before[what], after[what])
        ]


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "torch's random state": torch.get_rng_state(),
        "numpy's random state": str(np.random.get_state()),
        "Python's random state": random.getstate(),
    }
    for name, tensor in model.state_dict().items():
        found[f"weight {name}"] = tensor.clone()
    for name, parameter in model.named_parameters():
        found[f"gradient of {name}"] = None if parameter.grad is None else parameter.grad.clone()
        found[f"requires_grad of {name}"] = parameter.requires_grad
        if optimizer is not None:
            for key, value in optimizer.state.get(parameter, {}).items():
                found[f"optimizer's {key} of {name}"] = torch.as_tensor(value).clone()
    for name, module in model.named_modules():
        found[f"train/eval mode of {name or 'the model'}"] = module.training
        found[f"hooks on {name or 'the model'}"] = [
            len(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        ]
    return found


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        return torch.equal(before, after)
    return bool(before == after)
