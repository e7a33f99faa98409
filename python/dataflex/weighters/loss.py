"""Weights from the losses of a step's own samples.

Sow et al., "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining" (ICLR 2025,
arXiv 2502.06733). With losses l_i of the global batch, scaled to h_i in [-delta, delta],

    h_i = delta (2 l_i - max l - min l) / (max l - min l),

a strategy turns h into s(h), and the weights are softmax(s / r) over the batch:

========= ==================== =====================================================
strategy  s(h)                 what it does
========= ==================== =====================================================
linupper  min(h + delta, delta) low losses count less, the upper half of the range alike
uniform   0                    all alike: the baseline
quadratic 1 - h^2 / delta^2    losses in the middle of the range count most
extremes  |h|                  those at either end count most
========= ==================== =====================================================

The reference system compares the samples of each micro-batch, with the losses of the training pass (``scope:
micro_batch``): no pass is added, dropout plays a part, and the weights depend on the size of a micro-batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataflex.weighters.base import GlobalBatch, Scope, Weighter, WeighterConfig

Strategy = Literal["linupper", "uniform", "quadratic", "extremes"]


class LossWeighterConfig(WeighterConfig):
    """Parameters of ``loss``."""

    strategy: Strategy = Field("linupper", description="which losses count more")
    delta: float = Field(1.0, gt=0, allow_inf_nan=False, description="losses are scaled to [-delta, delta]")
    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="r: above 1 evens the weights out")
    scope: Scope = Field(
        "global",
        description="global: compare all samples of a step, for one more forward pass; micro_batch: those of each "
        "forward pass of training, for nothing",
    )


class LossWeighter(Weighter[LossWeighterConfig]):
    """Weighs the samples of a step by their losses, relative to the others of the step.

    Source: Sow et al., Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining, ICLR 2025,
    arXiv 2502.06733.

    Example:
        >>> weighter = LossWeighter(strategy="linupper", delta=1.0)
    """

    name: ClassVar[str] = "loss"
    Config = LossWeighterConfig

    @property
    def scope(self) -> Scope:
        """As configured."""
        return self.config.scope

    @property
    def passes(self) -> float:
        """One, unless the losses are those of training itself."""
        return 1.0 if self.scope == "global" else 0.0

    def weights(self, batch: GlobalBatch) -> NDArray[np.float64]:
        """Softmax of the strategy over the scaled losses."""
        config = self.config
        return loss_weights(batch.losses, config.strategy, config.delta, config.temperature)


def loss_weights(
    losses: NDArray[np.float64], strategy: Strategy, delta: float, temperature: float
) -> NDArray[np.float64]:
    """Weights ``(B,)``, sum 1, from losses ``(B,)``; all alike where the losses are."""
    low, high = losses.min(), losses.max()
    scaled = np.zeros_like(losses) if high == low else delta * (2 * losses - high - low) / (high - low)
    strategies: dict[Strategy, NDArray[np.float64]] = {
        "linupper": np.minimum(scaled + delta, delta),
        "uniform": np.zeros_like(losses),
        "quadratic": 1 - scaled**2 / delta**2,
        "extremes": np.abs(scaled),
    }
    exponents = strategies[strategy] / temperature
    raised: NDArray[np.float64] = np.exp(exponents - exponents.max())
    raised /= raised.sum()
    return raised
