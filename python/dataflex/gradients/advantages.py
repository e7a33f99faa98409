"""Advantages of sampled answers: from rewards to the weights of a policy gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Literal

Baseline = Literal["none", "leave_one_out", "mean_std"]


def unit_scale(values: Sequence[float]) -> list[float]:
    """The values times the power of two that brings the largest to [1/2, 1); zeros stay zeros.

    A prompt counts by the direction of its gradient, which a factor does not change; rewards of 1e-60 or 1e60 would be
    zero or infinite as float32 weights of a loss.
    """
    largest = max(map(abs, values), default=0.0)
    exponent = math.frexp(largest)[1]
    return [math.ldexp(value, -exponent) for value in values]


def advantages(rewards: Sequence[float], baseline: Baseline) -> list[float]:
    """Advantage A_m of each answer of one prompt.

    Args:
        rewards: Rewards of the answers that could be scored.
        baseline: ``none``: A = r. ``leave_one_out``: A_m = r_m - mean of the others, which keeps the gradient
            unbiased and lowers its variance (Kool et al. 2019); one answer alone has no others, so A = 0.
            ``mean_std``: (r - mean) / standard deviation, biased. Equal rewards give A = 0 under both.

    Returns:
        As many numbers as rewards.
    """
    if baseline == "none":
        return list(rewards)
    if len(set(rewards)) < 2 or pstdev(rewards) == 0:  # 0 also where the squared differences are too small for a float
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    if baseline == "leave_one_out":
        count = len(rewards)
        return [(reward - mean) * count / (count - 1) for reward in rewards]
    deviation = pstdev(rewards)
    return [(reward - mean) / deviation for reward in rewards]
