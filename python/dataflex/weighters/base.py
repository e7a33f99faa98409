"""The contract of a weighter: what it is given, what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dataflex.data.dataset import Example
from dataflex.errors import TrainingError
from dataflex.plugins.configurable import ComponentConfig, ConfigT, Configurable
from dataflex.types import Autocast
from dataflex.utils.distributed import Ranks
from dataflex.utils.shown import listed
from dataflex.weighters.measuring import row_losses, row_states

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from dataflex.data.dataset import TokenizedDataset


Scope = Literal["global", "micro_batch"]


@dataclass(frozen=True, repr=False)
class GlobalBatch:
    """The B samples of an optimizer step: all micro-batches of all ranks, the same on every rank.

    What is computed from the model is computed when it is first asked for, once, by all ranks together: every rank has
    to ask for it.

    Attributes:
        examples: The B samples, in order.
        step: Number of the step, from 1.
        total_steps: Steps of the run.
        model: The model before the step, adapters included, unwrapped.
        tokenizer: The tokenizer of the data.
        eval_dataset: q target samples, or None.
        seed: Seed of the run.
        micro_batch: Rows of one forward pass.
        autocast: Returns the context manager under which the trainer runs its forward passes.
        ranks: The processes of the run.
        known_losses: ``(B,)`` losses that a training pass has computed already; None: :attr:`losses` runs a pass.
    """

    examples: Sequence[Example]
    step: int
    total_steps: int
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    eval_dataset: TokenizedDataset | None
    seed: int
    micro_batch: int
    autocast: Autocast
    ranks: Ranks = field(default_factory=Ranks)
    known_losses: NDArray[np.float64] | None = None

    # No cached_property: before Python 3.12 it holds a lock while it computes, which ranks that are threads wait for.
    @property
    def losses(self) -> NDArray[np.float64]:
        """``(B,)`` mean token cross-entropy of each sample alone, in nats.

        One forward pass without dropout, or, with ``known_losses``, those.
        """
        if self.known_losses is not None:
            return self.known_losses
        return self._once("losses", row_losses)

    @property
    def states(self) -> NDArray[np.float64]:
        """``(B, h)`` position-weighted means of each sample's last hidden states: one forward pass."""
        return self._once("states", row_states)

    def _once(
        self, what: str, compute: Callable[[GlobalBatch, Sequence[Example]], NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        computed: dict[str, NDArray[np.float64]] = self.__dict__.setdefault("_computed", {})
        if what not in computed:
            computed[what] = compute(self, self.examples)
        return computed[what]


class WeighterConfig(ComponentConfig):
    """Base of every weighter's parameters."""


class Weighter(Configurable[ConfigT], ABC):
    """Says how much each sample of a step counts.

    A subclass names its parameters in ``Config`` and implements :meth:`weights`.

    Attributes:
        needs_eval_dataset: The trainer refuses to start without an evaluation set.
    """

    name: ClassVar[str] = "weighter"
    needs_eval_dataset: ClassVar[bool] = False

    @property
    def scope(self) -> Scope:
        """Which samples are compared.

        ``global``: those of the whole step, before it. ``micro_batch``: :meth:`weights` gets the samples of one forward
        pass of training with ``known_losses``, on the rank that has them alone.
        """
        return "global"

    @property
    def passes(self) -> float:
        """Forward passes over a step's samples that its weights cost, on the average; for plans."""
        return 0.0

    @abstractmethod
    def weights(self, batch: GlobalBatch) -> NDArray[np.float64]:
        """Weights of a step's samples; what counts is their ratio (:func:`normalised`).

        Args:
            batch: The B samples of the step, and what can be computed of them.

        Returns:
            ``(B,)`` float64, finite, non-negative, not all zero; the same on every rank.
        """

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state that a resumed run needs; empty for weighters without memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        del state

    def close(self) -> None:
        """Free what the weighter holds. Called when training ends, however it ends."""
        return None


def normalised(weights: NDArray[np.float64], batch: GlobalBatch, name: str) -> NDArray[np.float64]:
    """Weights of mean 1: equal ones leave the loss as it was.

    Raises:
        TrainingError: They are not B finite numbers of at least 0, or all are 0.
    """
    count = len(batch.examples)
    found = np.asarray(weights, dtype=np.float64)
    if found.shape != (count,) or not np.isfinite(found).all() or found.min() < 0 or not found.any():
        raise TrainingError(
            f"the weighter {name!r} returned for step {batch.step} {found.tolist()[:8]} (shape {found.shape}); "
            f"expected {count} finite weights of at least 0, not all 0",
            hint=f"samples of the step: {listed(example.sample.id for example in batch.examples)}",
        )
    weighed: NDArray[np.float64] = found * (count / found.sum())
    return weighed
