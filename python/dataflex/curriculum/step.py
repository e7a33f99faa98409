"""What a curriculum does with the rows of a step while a loop takes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dataflex.utils.distributed import Ranks

if TYPE_CHECKING:
    from torch import Tensor


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


class StepRows:
    """Losses and weights of a step's B rows, from the micro-batches that a loop computes on this rank.

    Args:
        tokens: ``(B,)`` label tokens of each row.
        work: Gives weights.
    """

    def __init__(self, tokens: Sequence[int], work: StepWork) -> None:
        self._tokens = np.array(tokens, dtype=np.int64)
        self._sums, self._weights = np.zeros(len(tokens)), np.ones(len(tokens))
        self._work = work

    def loss(self, sums: Tensor, places: Sequence[int]) -> Tensor:
        """The weighted sum of a micro-batch's token losses.

        Args:
            sums: ``(b,)`` summed token losses of its rows, with their graph.
            places: Their places in the global batch.
        """
        found = sums.detach().double().cpu().numpy()
        self._sums[list(places)] = found
        weights = self._work.weights(places, found / self._tokens[list(places)])
        if weights is None:
            return sums.sum()
        self._weights[list(places)] = weights
        return (sums * sums.new_tensor(weights)).sum()

    def gather(self, ranks: Ranks) -> RowLosses:
        """Those of all rows, on every rank, which has to ask for them."""
        sums, weights = self._sums, self._weights
        if ranks.count > 1:
            import torch

            own = torch.from_numpy(np.stack([sums, weights - 1]))  # zero where the rows are another rank's
            total = torch.stack(ranks.gather_tensors(own)).sum(dim=0).numpy()
            sums, weights = total[0], total[1] + 1
        return RowLosses(sums, self._tokens, weights)
