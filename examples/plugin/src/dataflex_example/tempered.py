"""Shares by a power of the sizes of domains, as multilingual pretraining draws its languages.

Conneau and Lample 2019 (arXiv 1901.07291, section 3.1): a domain with n_d rows gets n_d^alpha / sum_j n_j^alpha. With
alpha = 1 that is by size, with 0 all alike; in between small domains are seen more often than they would be by size,
and large ones still more often than small ones.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataflex import Mixer, MixerConfig, MixtureContext


class TemperedConfig(MixerConfig):
    """Parameters of ``tempered``."""

    alpha: float = Field(0.5, ge=0, le=1, description="1: shares by size; 0: all domains alike")


class TemperedMixer(Mixer[TemperedConfig]):
    """Gives each domain a share by a power of its size; the same in every phase."""

    name: ClassVar[str] = "tempered"
    needs_losses: ClassVar[bool] = False
    Config = TemperedConfig

    def proportions(self, context: MixtureContext) -> NDArray[np.float64]:
        """n_d^alpha, normalised; nothing for a domain without rows."""
        sizes = np.array([len(domain.rows) for domain in context.domains], dtype=np.float64)
        raised = np.where(sizes > 0, sizes**self.config.alpha, 0.0)
        shares: NDArray[np.float64] = raised / raised.sum()
        return shares
