"""Uniform selection: the baseline that every other selector has to beat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dataflex.errors import SelectionError
from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig


class RandomSelector(Selector[SelectorConfig]):
    """Draws ``num_samples`` candidates without replacement, seeded by (seed of the run, round)."""

    name: ClassVar[str] = "random"
    Config = SelectorConfig

    def select(self, context: SelectionContext) -> Selection:
        """Draw the round's samples.

        Raises:
            SelectionError: More samples are asked for than there are candidates.
        """
        n = len(context.train_dataset)
        if context.num_samples > n:
            raise SelectionError(f"{context.num_samples} samples are to be selected from {n} candidates")
        stream = np.random.default_rng([context.seed, context.round])
        indices = stream.choice(n, size=context.num_samples, replace=False).astype(np.int64)
        return Selection(indices, None, self.name, context.step, context.round)
