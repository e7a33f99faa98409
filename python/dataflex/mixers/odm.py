"""Online data mixing: domains as the arms of a bandit whose reward is the training loss.

Albalak et al., "Efficient Online Data Mixing For Language Model Pre-Training" (arXiv 2312.02406), algorithm 1, which is
Exp3 (Auer et al. 2002) with a moving average of importance-weighted rewards. With K domains, after round t = 1, 2, ...

    R_d   <- a R_d + (1 - a) loss_d / pi_d                              (domains that were trained on)
    eps_t  = min(1 / K, sqrt(ln K / (K t)))
    pi_d   = (1 - K eps_t) exp(eps_(t-1) R_d) / sum_j exp(eps_(t-1) R_j) + eps_t,        eps_0 = 1 / K.

The paper takes a step a round; here a round is a phase, and loss_d is the mean token loss of all rows of the domain
that the phase trained on: training has computed it, so a mixture costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataflex.mixers.base import Mixer, MixerConfig, MixtureContext
from dataflex.mixers.domains import Domain, as_proportions
from dataflex.utils.messages import Path


class OdmConfig(MixerConfig):
    """Parameters of ``odm``."""

    alpha: float = Field(0.9, ge=0, lt=1, description="how much of the old reward stays at an update")
    warmup_steps: int = Field(0, ge=0, description="optimizer steps before the first mixture of its own")
    initial_proportions: list[float] | None = Field(
        None, description="proportions until then; null: those that the run begins with"
    )
    num_eval_samples: int | None = Field(None, description="no effect: rewards are the losses of training itself")
    eval_batch_size: int | None = Field(None, description="no effect, for the same reason")

    def find_idle(self) -> list[tuple[Path, str]]:
        """Keys of other implementations, which measure the rewards."""
        unused = ("num_eval_samples", "eval_batch_size")
        return [
            ((key,), "has no effect: rewards are the losses that training computes anyway")
            for key in unused
            if getattr(self, key) is not None
        ]


class OdmMixer(Mixer[OdmConfig]):
    """Gives more to domains whose loss is high, and explores less and less.

    Source: Albalak et al., Efficient Online Data Mixing For Language Model Pre-Training, arXiv 2312.02406, algorithm 1.

    Example:
        >>> mixer = OdmMixer(alpha=0.9)
    """

    name: ClassVar[str] = "odm"
    Config = OdmConfig

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._rewards: list[float] | None = None
        self._updates = 0

    def initial_proportions(self, domains: Sequence[Domain]) -> NDArray[np.float64] | None:
        """The configured ones.

        Raises:
            DataError: They do not fit the domains.
        """
        given = self.config.initial_proportions
        return None if given is None else as_proportions(given, domains, "initial_proportions of the mixer 'odm'")

    def proportions(self, context: MixtureContext) -> NDArray[np.float64]:
        """Update the rewards with the phase that has ended, and mix by them."""
        filled = np.array([len(domain.rows) > 0 for domain in context.domains])
        rewards = np.zeros(len(filled)) if self._rewards is None else np.array(self._rewards)
        losses = context.losses.means()
        seen = np.isfinite(losses) & (context.proportions > 0)
        weighted = losses[seen] / context.proportions[seen]
        rewards[seen] = self.config.alpha * rewards[seen] + (1 - self.config.alpha) * weighted
        self._rewards = rewards.tolist()
        if context.step < self.config.warmup_steps:
            initial = self.initial_proportions(context.domains)
            return context.proportions if initial is None else initial
        self._updates += 1
        mixed = np.zeros(len(filled))
        mixed[filled] = exp3(rewards[filled], self._updates)
        return mixed

    def check(self, context: MixtureContext) -> None:
        """See that the initial proportions fit the domains.

        Raises:
            DataError: They do not.
        """
        self.initial_proportions(context.domains)

    def report(self) -> dict[str, Any]:
        """Rewards R_d and the share eps_t that every domain is sure of."""
        known = len(self._rewards or ())
        return {"rewards": self._rewards or [], "exploration": exploration(known, self._updates) if known else None}

    def state_dict(self) -> dict[str, Any]:
        """Rewards and number of updates."""
        return {"rewards": self._rewards, "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._rewards, self._updates = state["rewards"], state["updates"]


def exploration(domains: int, update: int) -> float:
    """eps_t: the share that every one of K domains is sure of after t updates; eps_0 = 1 / K."""
    if update == 0:
        return 1 / domains
    return min(1 / domains, math.sqrt(math.log(domains) / (domains * update)))


def exp3(rewards: NDArray[np.float64], update: int) -> NDArray[np.float64]:
    """The proportions pi after update t.

    Args:
        rewards: ``(K,)`` R_d.
        update: t, from 1.
    """
    domains = len(rewards)
    sure = exploration(domains, update)
    exponents = exploration(domains, update - 1) * rewards
    weights = np.exp(exponents - exponents.max())
    mixed: NDArray[np.float64] = (1 - domains * sure) * weights / weights.sum() + sure
    mixed /= mixed.sum()  # away with the last rounding
    return mixed
