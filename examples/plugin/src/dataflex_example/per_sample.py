"""Samples that count alike, however long their answers are.

The loss of a step is a mean over tokens, in which a sample with a long answer counts more than one with a short one.
With the weight 1 / tokens^power each sample counts tokens^(1 - power): 1 makes the loss a mean over samples.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataflex import GlobalBatch, Weighter, WeighterConfig


class PerSampleConfig(WeighterConfig):
    """Parameters of ``per_sample``."""

    power: float = Field(1.0, ge=0, le=1, description="1: samples count alike; 0: tokens do, as without weights")


class PerSampleWeighter(Weighter[PerSampleConfig]):
    """Weighs samples by a power of the length of their answers; it costs nothing."""

    name: ClassVar[str] = "per_sample"
    Config = PerSampleConfig

    def weights(self, batch: GlobalBatch) -> NDArray[np.float64]:
        """1 / tokens^power of each sample."""
        tokens = np.array([example.num_labels for example in batch.examples], dtype=np.float64)
        weights: NDArray[np.float64] = tokens**-self.config.power
        return weights
