"""One mixture for the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataflex.mixers.base import Mixer, MixerConfig, MixtureContext
from dataflex.mixers.domains import Domain, as_proportions


class StaticConfig(MixerConfig):
    """Parameters of ``static``."""

    proportions: list[float] | None = Field(
        None, description="share of each domain, in the order of dataset; null: those that the run begins with"
    )


class StaticMixer(Mixer[StaticConfig]):
    """Keeps the same proportions: the baseline of every other mixer.

    Example:
        >>> mixer = StaticMixer(proportions=[0.7, 0.3])
    """

    name: ClassVar[str] = "static"
    Config = StaticConfig
    needs_schedule: ClassVar[bool] = False
    needs_losses: ClassVar[bool] = False

    def initial_proportions(self, domains: Sequence[Domain]) -> NDArray[np.float64] | None:
        """The configured proportions.

        Raises:
            DataError: They do not fit the domains.
        """
        given = self.config.proportions
        return None if given is None else as_proportions(given, domains, "proportions of the mixer 'static'")

    def check(self, context: MixtureContext) -> None:
        """See that the proportions fit the domains.

        Raises:
            DataError: They do not.
        """
        self.initial_proportions(context.domains)

    def proportions(self, context: MixtureContext) -> NDArray[np.float64]:
        """The configured proportions, or those of the phase before."""
        given = self.initial_proportions(context.domains)
        return context.proportions if given is None else given
