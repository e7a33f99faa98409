"""Adam normalisation: the direction in which a sample alone would move the parameters.

With the optimizer's moments m, v after t steps and a gradient g::

    m' = b1 m + (1 - b1) g          v' = b2 v + (1 - b2) g^2
    adamw:  u = (m' / (1 - b1^(t+1))) / (sqrt(v' / (1 - b2^(t+1))) + eps)
    less:   u = m' / sqrt(v' + eps)
    second_moment:  u = g / (sqrt(v' / (1 - b2^(t+1))) + eps)

``adamw`` is the step of torch's AdamW up to ``-lr`` and weight decay; ``less`` is the formula of LESS
(arXiv 2402.04333, official code), with eps under the root and no bias correction. ``second_moment`` is ``adamw`` with
b1 = 0: b1 m is the same for every sample, so that it draws all directions together and tells no sample from another.

Bound. Whatever gradients the optimizer has seen, Cauchy-Schwarz gives for every variant and t ::

    |u| <= (1 - b1) / sqrt(1 - b2) / sqrt(1 - b1^2 / b2)          if b1^2 < b2

(7.27 for betas 0.9, 0.999). It is the limit of t to infinity. For ``adamw`` after T = t + 1 gradients it is smaller by
::

    sqrt(1 - b2^T) sqrt(1 - (b1^2 / b2)^T) / (1 - b1^T),

which matters where b2 is close to 1: for b2 = 0.99999999 the limit is 2294, and after 1,000 steps 7.3 is the bound. It
holds for m and v of one run that started at zero. With b1 = 0, as in ``second_moment``, it is 1 / sqrt(1 - b2), 31.6
for b2 = 0.999, after T gradients at most sqrt(T), and holds for any v of at least zero.

Parameters with learning rates of their own (LoRA+, arXiv 2402.12354) step by u times rate / mean rate, up to a factor
that all share: the rates are part of b1 and 1 - b1 where the first moment is formed (1 times g with ``second_moment``).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dataflex.errors import GradientError

AdamVariant = Literal["adamw", "less", "second_moment"]


@dataclass(frozen=True, eq=False)
class AdamMoments:
    """State of Adam or AdamW over p consecutive parameters.

    Attributes:
        exp_avg: ``(p,)`` float32, first moment m.
        exp_avg_sq: ``(p,)`` float32, second moment v, on the same device.
        step: Optimizer steps t that the moments have seen, at least 1.
        betas: The optimizer's (b1, b2), each in [0, 1).
        eps: The optimizer's eps, at least 0.
        variant: Which formula normalises with them.
        largest_rate: The largest learning rate of any parameter of the model over the mean of all; it bounds u.
        rates: ``(end, rate over mean rate)`` of consecutive runs of parameters, the last ends at p; empty: 1 for all.

    Raises:
        GradientError: Every attribute that is not as above, all at once.
    """

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: int
    betas: tuple[float, float]
    eps: float
    variant: AdamVariant = "adamw"
    largest_rate: float = 1.0
    rates: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        problems = [*self._tensor_problems(), *self._setting_problems()]
        if problems:
            raise GradientError("Adam moments: " + "; ".join(problems))

    def __len__(self) -> int:
        return self.exp_avg.shape[0]

    def slice(self, start: int, stop: int) -> AdamMoments:
        """The moments of parameters ``start`` to ``stop`` (views, no copy)."""
        rates: list[tuple[int, float]] = []
        for end, rate in self.rates[bisect_right(self.rates, start, key=itemgetter(0)) :]:
            if start < stop:
                rates.append((min(end, stop) - start, rate))
            if end >= stop:
                break
        return AdamMoments(self.exp_avg[start:stop], self.exp_avg_sq[start:stop], *self.settings, tuple(rates))

    def followed_by(self, other: AdamMoments) -> AdamMoments:
        """The moments of these parameters and of those after them, copied.

        Args:
            other: Of the parameters after these, with the same :attr:`settings`.
        """
        rates: list[tuple[int, float]] = []
        for start, part in ((0, self), (len(self), other)):
            for end, rate in part.rates or (((len(part), 1.0),) if self.rates or other.rates else ()):
                if rates and rates[-1][1] == rate:
                    rates.pop()
                rates.append((start + end, rate))
        exp_avg = torch.cat([self.exp_avg, other.exp_avg])
        exp_avg_sq = torch.cat([self.exp_avg_sq, other.exp_avg_sq])
        return AdamMoments(exp_avg, exp_avg_sq, *self.settings, tuple(rates))

    def runs(self) -> Iterator[tuple[int, int, AdamMoments]]:
        """``(start, stop, moments)`` of the consecutive runs of parameters that share a learning rate."""
        if len(self.rates) <= 1:
            yield 0, len(self), self
            return
        start = 0
        for end, _ in self.rates:
            yield start, end, self.slice(start, end)
            start = end

    def common_rate(self, start: int, stop: int) -> float | None:
        """The learning rate over the mean rate of parameters ``start`` to ``stop``; None if they have several."""
        if not self.rates:
            return 1.0
        end, rate = self.rates[bisect_right(self.rates, start, key=itemgetter(0))]
        return rate if stop <= end else None

    def at_rate(self, rate: float) -> AdamMoments:
        """These moments with one learning rate, over the mean rate, for all parameters."""
        return replace(self, rates=((len(self), rate),))

    @property
    def settings(self) -> tuple[int, tuple[float, float], float, AdamVariant, float]:
        """Everything but tensors and rates: what the blocks of one gradient must share."""
        return self.step, self.betas, self.eps, self.variant, self.largest_rate

    @property
    def effective_betas(self) -> tuple[float, float]:
        """(b1, b2) of the formula: b1 is 0 without the first moment."""
        return (0.0 if self.variant == "second_moment" else self.betas[0]), self.betas[1]

    def constants(self) -> tuple[float, float, float, float, float, float, float]:
        """b1, 1 - b1, b2, 1 - b2, 1 / (1 - b1^(t+1)), 1 / (1 - b2^(t+1)), eps.

        Each is computed in float64 and rounded to float32 once (``1 - b2`` in float32 would be 1.3e-5 off). Kernels
        multiply by the reciprocals of the bias corrections. b1 and 1 - b1 are times the run's learning rate.
        ``second_moment`` has b1 = 0.

        Raises:
            GradientError: The parameters have several learning rates: each of :meth:`runs` has its own constants.
        """
        if len(self.rates) > 1:
            raise GradientError(f"moments with {len(self.rates)} learning rates have no common constants: use runs()")
        rate = self.rates[0][1] if self.rates else 1.0
        b1, b2 = self.effective_betas
        corrections = (1 / (1 - b1 ** (self.step + 1)), 1 / (1 - b2 ** (self.step + 1)))
        values = np.array([b1 * rate, (1 - b1) * rate, b2, 1 - b2, *corrections, self.eps], dtype=np.float32)
        b1, c1, b2, c2, r1, r2, eps = values.tolist()
        return b1, c1, b2, c2, r1, r2, eps

    def _tensor_problems(self) -> list[str]:
        problems = []
        for name, tensor in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)):
            if tensor.ndim != 1 or tensor.dtype != torch.float32:
                problems.append(f"{name} must be float32 of shape (p,), got {tensor.dtype} {tuple(tensor.shape)}")
        if self.exp_avg.shape != self.exp_avg_sq.shape or self.exp_avg.device != self.exp_avg_sq.device:
            problems.append(
                f"exp_avg {tuple(self.exp_avg.shape)} on {self.exp_avg.device} and exp_avg_sq "
                f"{tuple(self.exp_avg_sq.shape)} on {self.exp_avg_sq.device} must have one shape and device"
            )
        return problems

    def _setting_problems(self) -> list[str]:
        problems = []
        if self.step < 1:
            problems.append(f"step must be at least 1, got {self.step}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"betas must be two numbers in [0, 1), got {self.betas}")
        if not 0 <= self.eps < math.inf:
            problems.append(f"eps must be a finite number of at least 0, got {self.eps}")
        if self.variant not in get_args(AdamVariant):
            problems.append(f"variant must be one of {', '.join(get_args(AdamVariant))}, got {self.variant!r}")
        ends = [0, *(end for end, _ in self.rates)]
        if self.rates and (ends[-1] != len(self) or sorted(set(ends)) != ends):
            problems.append(f"rates must end at {len(self)}, each after the one before, got {self.rates}")
        if not all(0 <= rate <= self.largest_rate < math.inf for _, rate in self.rates):
            problems.append(f"rates must be in [0, {self.largest_rate}], got {self.rates}")
        return problems


def adam_normalize(grads: Tensor, adam: AdamMoments) -> Tensor:
    """Normalise gradients.

    Args:
        grads: ``(b, p)`` float32, bfloat16 or float16.
        adam: Moments of the same p parameters on the same device.

    Returns:
        ``(b, p)`` float32 u; NaN where the denominator overflows (|g| beyond 1e20).
    """
    parts = [
        normalize(grads.detach()[:, start:stop], run.exp_avg, run.exp_avg_sq, run.constants(), run.variant)
        for start, stop, run in adam.runs()
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def normalize(grads: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, constants: Sequence[float], variant: str) -> Tensor:
    """:func:`adam_normalize` with the moments' parts, one IEEE float32 operation at a time.

    This is the reference of the fused kernels: the same operations in the same order, hence the same bits.
    """
    b1, c1, b2, c2, r1, r2, eps = constants
    g = grads.float()  # (b, p)
    mean = c1 * g if variant == "second_moment" else b1 * exp_avg + c1 * g
    square = b2 * exp_avg_sq + (c2 * g) * g
    numerator = mean * r1 if variant == "adamw" else mean
    denominator = square_root(square + eps) if variant == "less" else square_root(square * r2) + eps
    return (numerator / denominator).masked_fill_(denominator.isinf(), math.nan)


def square_root(values: Tensor) -> Tensor:
    """Correctly rounded float32 square root.

    torch's own differs from IEEE in the last bit of 0.7 % of values on the CPU (a vector library). Through float64
    it is exact: a square root of a float32 is at least 2^-51 away, relatively, from a rounding boundary.
    """
    return torch.sqrt(values.double()).float()


def adam_bound(betas: tuple[float, float], gradients: int | None = None) -> float:
    """The largest absolute u that Adam normalisation can give (module docstring).

    Args:
        betas: :attr:`AdamMoments.effective_betas`.
        gradients: T, for ``adamw`` and ``second_moment``; None: any number of gradients, every variant.

    Raises:
        GradientError: 0 < b1^2 >= b2: there is no bound that holds for every number of steps.
    """
    b1, b2 = betas
    if b1 and b1 * b1 >= b2:
        raise GradientError(
            f"Adam normalisation is bounded only if beta1^2 < beta2, got betas {betas}",
            hint="use other betas, or gradient_type: sgd",
        )
    ratio = b1 * b1 / b2 if b1 else 0.0
    limit = (1 - b1) / math.sqrt(1 - b2) / math.sqrt(1 - ratio)
    if gradients is None:
        return limit
    first, second, mixed = (1 - b**gradients for b in (b1, b2, ratio))
    return limit * math.sqrt(second * mixed) / first
