"""What a curriculum does with the rows of a step while a loop takes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RowLosses:
    """Losses of the B rows of a step's global batch, as training computed them.

    Attributes:
        sums: ``(B,)`` float64, each row's token cross-entropies added up (nats), before any weight.
        tokens: ``(B,)`` int64, how many tokens they are of.
        weights: ``(B,)`` float64, what the rows counted.
    """

    sums: NDArray[np.float64]
    tokens: NDArray[np.int64]
    weights: NDArray[np.float64]


class StepWork(ABC):
    """Asked by a loop for the weights of each micro-batch, and told the losses of all rows at its end."""

    def weights(self, rows: Sequence[int], losses: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """What some rows count; None: all alike.

        Args:
            rows: Their places in the global batch; b of them, a micro-batch.
            losses: ``(b,)`` their mean token losses in this very forward pass.
        """
        del rows, losses
        return None

    @abstractmethod
    def done(self, losses: RowLosses) -> dict[str, float]:
        """Take the losses of the global batch, the same on every rank; returns numbers for the log entry."""
