"""The contract of a mixer: what it is given, what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataflex.mixers.domains import Domain
from dataflex.plugins.configurable import ComponentConfig, ConfigT, Configurable
from dataflex.types import Autocast
from dataflex.utils.distributed import Ranks
from dataflex.utils.shown import listed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from dataflex.data.dataset import TokenizedDataset


@dataclass(frozen=True, slots=True)
class DomainLosses:
    """Losses of training steps, by domain, over all ranks and micro-batches.

    Attributes:
        sums: ``(K,)`` float64, token cross-entropies in nats, each with the model as it was at that step.
        tokens: ``(K,)`` int64, how many tokens with loss they are of.
    """

    sums: NDArray[np.float64]
    tokens: NDArray[np.int64]

    def means(self) -> NDArray[np.float64]:
        """``(K,)`` mean token losses, NaN for a domain that was not trained on."""
        means = np.full(len(self.sums), np.nan)
        np.divide(self.sums, self.tokens, out=means, where=self.tokens > 0)
        return means


@dataclass(frozen=True, repr=False)
class MixtureContext:
    """What a mixer may use before a phase. It is the same on every rank but for ``ranks.index``.

    Attributes:
        model: The model in its current state, adapters included, unwrapped; left as it was found.
        tokenizer: The tokenizer of the datasets.
        train_dataset: n candidates.
        measured_dataset: Rows to measure domains by, and their domains in ``measured_domains``: the dataset of
            ``mixer_eval_dataset``, or the candidates themselves.
        domains: The K domains of the candidates.
        measured_domains: The same K domains in ``measured_dataset``.
        proportions: ``(K,)`` float64, those of the phase that has just ended.
        losses: Of the phase that has just ended.
        step: Optimizer steps taken so far.
        round: Which mixture this is, from 1.
        num_rounds: How many the run asks for.
        seed: Seed of the run; a mixer derives its own streams from (seed, round).
        output_dir: Folder of the run.
        autocast: Returns the context manager under which the trainer runs its forward passes.
        ranks: The processes of the run. Every rank must return the same proportions.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    train_dataset: TokenizedDataset
    measured_dataset: TokenizedDataset
    domains: tuple[Domain, ...]
    measured_domains: tuple[Domain, ...]
    proportions: NDArray[np.float64]
    losses: DomainLosses
    step: int
    round: int
    num_rounds: int
    seed: int
    output_dir: Path
    autocast: Autocast
    ranks: Ranks = field(default_factory=Ranks)

    def __repr__(self) -> str:
        names = listed([domain.name for domain in self.domains])
        return f"MixtureContext(step {self.step:,}, round {self.round} of {self.num_rounds}; domains: {names})"


class MixerConfig(ComponentConfig):
    """Base of every mixer's parameters."""


class Mixer(Configurable[ConfigT], ABC):
    """Says which share of the next phase each of the K domains gets.

    A subclass names its parameters in ``Config`` and implements :meth:`proportions`.

    Attributes:
        needs_schedule: A run without a schedule, which is a single phase, leaves it nothing to say.
        needs_losses: It reads ``context.losses``. A trainer of somebody else's has to be handed the loss that counts
            them (:attr:`dataflex.integrations.transformers.Curriculum.compute_loss_func`), and is refused without.
    """

    name: ClassVar[str] = "mixer"
    needs_schedule: ClassVar[bool] = True
    needs_losses: ClassVar[bool] = True

    def initial_proportions(self, domains: Sequence[Domain]) -> NDArray[np.float64] | None:
        """What the run begins with where its settings name nothing: ``(K,)``, or None for the sizes of the domains.

        Raises:
            DataError: The mixer's parameters do not fit the domains.
        """
        del domains
        return None

    def check(self, context: MixtureContext) -> None:
        """Raise before training starts if no mixture can be made with this context (``step`` 0, ``round`` 0)."""
        del context

    @abstractmethod
    def proportions(self, context: MixtureContext) -> NDArray[np.float64]:
        """The next phase's proportions.

        Args:
            context: The run as it is before the phase.

        Returns:
            ``(K,)`` float64, non-negative, sum 1; 0 for a domain without rows.

        Raises:
            SelectionError: There is no such mixture.
        """

    def report(self) -> dict[str, Any]:
        """Plain JSON facts on the last mixture (losses it was made from, an average, ...); empty: none."""
        return {}

    def measured_rows(self, domains: Sequence[Domain]) -> int:
        """Forward passes of one row each that a mixture costs, for plans; 0: it costs nothing.

        Args:
            domains: The domains of the rows to measure by.
        """
        del domains
        return 0

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state that a resumed run needs; empty for mixers without memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        del state

    def close(self) -> None:
        """Free what the mixer holds. Called when training ends, however it ends."""
        return None
