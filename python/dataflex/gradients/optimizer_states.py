"""What optimizers keep of a parameter, read as Adam's moments.

A sample alone would move the parameters by ``-lr u``. torch's Adam and AdamW keep what u is computed from as it is;
bitsandbytes' 8-bit kinds keep it quantised by blocks (arXiv 2110.02861), and it is dequantised, as their own step
does. Adafactor (arXiv 1804.04235) keeps means of the second moment over rows and columns; without a first moment,
``u = g / sqrt(v')`` with ``v' = b v + (1 - b) g^2``, b = 1 - t^-0.8, and v the product of the means. Its own step
averages g^2 over rows and columns, too, and clips each tensor's update, so there u is an approximation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from dataflex.errors import GradientError
from dataflex.projection.projector import AdamVariant

Group = Mapping[str, Any]
State = Mapping[str, Any]


class StateReader(ABC):
    """How to read the state of one family of optimizers.

    Attributes:
        second: Entry of a parameter's state that is there once a step was taken.
    """

    second: str

    @abstractmethod
    def problems(self, optimizer: torch.optim.Optimizer, number: int, group: Group) -> Iterator[str]:
        """Settings of a parameter group under which the step is not ``-lr u`` and decoupled weight decay."""

    @abstractmethod
    def settings(self, group: Group, step: int) -> tuple[float, float, float]:
        """b1, b2 and eps of the step after ``step``."""

    @abstractmethod
    def moments(self, state: State, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """First and second moment, float32, of as many values as ``shape``."""

    def variant(self, asked: AdamVariant) -> AdamVariant:
        """The formula that is computed where ``asked`` is asked for."""
        return asked

    def rate(self, group: Group, state: State, key: str = "lr") -> float:
        """Learning rate of a parameter, up to a factor that all share; ``key`` is the entry of its group."""
        del state
        return float(group.get(key, 0.0))


class _Adam(StateReader):
    """torch's Adam and AdamW, also fused, foreach and capturable."""

    second = "exp_avg_sq"

    def problems(self, optimizer: torch.optim.Optimizer, number: int, group: Group) -> Iterator[str]:
        for name in ("maximize", "amsgrad"):
            if group.get(name):
                yield f"group {number} has {name}=True"
        decoupled = type(optimizer) is torch.optim.AdamW or group.get("decoupled_weight_decay")
        if group.get("weight_decay") and not decoupled:
            yield (
                f"group {number} of Adam has weight_decay={group['weight_decay']:g}, which becomes part of the "
                "gradient (AdamW's does not)"
            )

    def settings(self, group: Group, step: int) -> tuple[float, float, float]:
        del step
        b1, b2 = map(float, group["betas"])
        return b1, b2, float(group["eps"])

    def moments(self, state: State, shape: torch.Size) -> tuple[Tensor, Tensor]:
        del shape
        return state["exp_avg"], state["exp_avg_sq"]


class _BitsAndBytes(_Adam):
    """bitsandbytes' Adam and AdamW: 32 and 8 bits, paged or not; weight decay is decoupled in all of them."""

    second = "state2"

    def problems(self, optimizer: torch.optim.Optimizer, number: int, group: Group) -> Iterator[str]:
        del optimizer, number, group
        yield from ()

    def moments(self, state: State, shape: torch.Size) -> tuple[Tensor, Tensor]:
        del shape
        return _dequantised(state, "1"), _dequantised(state, "2")


class _Adafactor(StateReader):
    """transformers' Adafactor without a first moment."""

    second = "step"

    def problems(self, optimizer: torch.optim.Optimizer, number: int, group: Group) -> Iterator[str]:
        del optimizer
        if group["beta1"] is not None:
            yield f"group {number} has beta1={group['beta1']:g}: Adafactor then averages updates, not gradients"

    def settings(self, group: Group, step: int) -> tuple[float, float, float]:
        return 0.0, 1.0 - (step + 1) ** float(group["decay_rate"]), float(group["eps"][0])

    def moments(self, state: State, shape: torch.Size) -> tuple[Tensor, Tensor]:
        if "exp_avg_sq" in state:
            square = state["exp_avg_sq"]
        else:
            row, column = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
            square = (row / row.mean(dim=-1, keepdim=True))[..., None] * column[..., None, :]
        return torch.zeros(shape, device=square.device), square

    def variant(self, asked: AdamVariant) -> AdamVariant:
        del asked
        return "less"  # eps under the root, no bias correction; all variants are one without a first moment

    def rate(self, group: Group, state: State, key: str = "lr") -> float:
        rate = 1.0 if group["relative_step"] else float(group.get(key, 0.0))
        return rate * max(float(group["eps"][1]), float(state.get("RMS", 0.0))) if group["scale_parameter"] else rate


_BITSANDBYTES = {
    f"{paged}{name}{bits}" for paged in ("", "Paged") for name in ("Adam", "AdamW") for bits in ("", "8bit", "32bit")
}
_BLOCK = 256
"""Values that share a scale in bitsandbytes' 8-bit states."""


def reader_of(optimizer: torch.optim.Optimizer | None) -> StateReader:
    """The reader of an optimizer's state, by its class; a subclass may take another step and has none.

    Raises:
        GradientError: There is no optimizer, or none whose step is a known function of what it keeps.
    """
    kind = type(optimizer)
    if kind in (torch.optim.Adam, torch.optim.AdamW):
        return _Adam()
    module, name = kind.__module__, kind.__name__
    if module.startswith("bitsandbytes.optim.") and name in _BITSANDBYTES:
        return _BitsAndBytes()
    if (module, name) == ("transformers.optimization", "Adafactor"):
        return _Adafactor()
    another = ", a subclass whose step may be another" if isinstance(optimizer, torch.optim.Adam) else ""
    raise GradientError(
        "gradient_type 'adam' reads the moments of Adam or AdamW (torch's, bitsandbytes') or Adafactor, got "
        f"{name}{another}",
        hint="another optimizer, or gradient_type: sgd",
    )


def _dequantised(state: State, number: str) -> Tensor:
    """A moment of bitsandbytes; small parameters have theirs in float32."""
    kept: Tensor = state[f"state{number}"]
    if kept.dtype != torch.uint8:
        return kept
    from bitsandbytes.functional import dequantize_blockwise

    found: Tensor = dequantize_blockwise(
        kept, absmax=state[f"absmax{number}"], code=state[f"qmap{number}"], blocksize=_BLOCK
    )
    return found
