"""Another random mixture for every phase: what a mixer that learns has to beat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataflex.mixers.base import Mixer, MixerConfig, MixtureContext


class RandomMixerConfig(MixerConfig):
    """Parameters of ``random``."""

    seed: int | None = Field(None, ge=0, description="seed of the mixtures; null: that of the run")
    concentration: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="of the Dirichlet distribution: 1 is uniform, larger is more even"
    )


class RandomMixer(Mixer[RandomMixerConfig]):
    """Draws the proportions of the domains that have rows from a symmetric Dirichlet distribution, by (seed, round)."""

    name: ClassVar[str] = "random"
    needs_losses: ClassVar[bool] = False
    Config = RandomMixerConfig

    def proportions(self, context: MixtureContext) -> NDArray[np.float64]:
        """The round's draw."""
        filled = np.array([len(domain.rows) > 0 for domain in context.domains])
        seed = context.seed if self.config.seed is None else self.config.seed
        stream = np.random.default_rng([seed, 3, context.round])
        drawn = np.zeros(len(filled))
        drawn[filled] = stream.dirichlet(np.full(int(filled.sum()), self.config.concentration))
        return drawn
