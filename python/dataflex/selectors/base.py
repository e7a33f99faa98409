"""The contract of a selector: what it is given, what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dataflex.plugins.configurable import ComponentConfig, ConfigT, Configurable
from dataflex.selectors.plan import Plan
from dataflex.types import Autocast, Sample
from dataflex.utils.distributed import Ranks
from dataflex.utils.notebook import SHOWN_ROWS, html_table, score_text
from dataflex.utils.shown import shown

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from pandas import DataFrame
    from transformers import PreTrainedTokenizerBase

    from dataflex.data.dataset import TokenizedDataset
    from dataflex.data.templates import ChatTemplate


@dataclass(frozen=True, repr=False)
class SelectionContext:
    """What a selector may use at one selection. It is the same on every rank but for ``ranks.index``.

    Attributes:
        model: The model in its current state, adapters included, unwrapped. A selector leaves parameters,
            ``.grad``, train/eval mode and RNG state as it found them.
        tokenizer: The tokenizer that the datasets were tokenised with.
        template: The chat template that the datasets were rendered with.
        train_dataset: n candidates.
        eval_dataset: q target samples, or None.
        num_samples: How many candidates to select.
        step: Optimizer steps taken so far.
        round: Which selection this is, from 1.
        num_rounds: How many selections the run makes.
        total_samples: How many candidates all selections of the run ask for together.
        seed: Seed of the run; a selector derives its own streams from (seed, round).
        output_dir: Folder of the run; rounds write below it.
        optimizer: The optimizer in its current state, or None before training.
        autocast: Returns the context manager under which the trainer runs its forward passes.
        ranks: The processes of the run. Every rank must return the same selection; work can be shared among them.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    train_dataset: TokenizedDataset
    eval_dataset: TokenizedDataset | None
    num_samples: int
    step: int
    round: int
    num_rounds: int
    total_samples: int
    seed: int
    output_dir: Path
    optimizer: torch.optim.Optimizer | None
    autocast: Autocast
    ranks: Ranks = field(default_factory=Ranks)

    def __repr__(self) -> str:
        targets = "none" if self.eval_dataset is None else f"{len(self.eval_dataset):,}"
        return (
            f"SelectionContext(step {self.step:,}, round {self.round} of {self.num_rounds}: {self.num_samples:,} of "
            f"{len(self.train_dataset):,} candidates to select, targets: {targets})"
        )


@dataclass(frozen=True, repr=False)
class Selection:
    """The outcome of one selection.

    Attributes:
        indices: ``(num_samples,)`` int64 positions in the candidate dataset, best first.
        scores: ``(n,)`` float64 score of every candidate, -inf for unusable ones, NaN for those that were not looked
            at; None if the method has none.
        selector: Name of the selector.
        step: Optimizer steps taken before the selection.
        round: Which selection of the run, from 1.
        report: Plain JSON facts for the report (counts, rewards, ...). Two entries are shown by name wherever a
            selection is: ``seconds`` (of each phase) and ``left_out`` (how many of what could not be used).
        repeats: A position may occur more than once: the draw was one with replacement.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float64] | None
    selector: str
    step: int
    round: int
    report: Mapping[str, Any] = field(default_factory=dict)
    repeats: bool = False

    def to_pandas(self) -> DataFrame:
        """The chosen candidates, best first: ``rank``, ``index`` (position) and ``score`` (NaN without one)."""
        import numpy as np
        import pandas as pd

        scores = np.full(len(self.indices), np.nan) if self.scores is None else self.scores[self.indices]
        return pd.DataFrame({"rank": np.arange(len(self.indices)), "index": self.indices, "score": scores})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._described()})"

    def _repr_html_(self) -> str:
        first = self.to_pandas().head(SHOWN_ROWS)
        rows = [(row.rank, row.index, score_text(row.score)) for row in first.itertuples(index=False)]
        return html_table(repr(self), ("rank", "index", "score"), rows, len(self.indices))

    def _described(self, candidates: int | None = None) -> str:
        """How many of how many, by which selector, with which scores."""
        import numpy as np

        if candidates is None and self.scores is not None:
            candidates = len(self.scores)
        of = "" if candidates is None else f" of {candidates:,}"
        text = f"{len(self.indices):,}{of} rows by {shown(self.selector, 60)} at step {self.step:,}"
        if self.scores is None or not len(self.indices):
            return text
        chosen = self.scores[self.indices]
        looked_at = int(np.sum(~np.isnan(self.scores)))
        if looked_at < len(self.scores):
            text = f"{text} ({looked_at:,} looked at)"
        return f"{text}, scores {score_text(chosen.min())} to {score_text(chosen.max())}"


class SelectorConfig(ComponentConfig):
    """Base of every selector's parameters."""


class Selector(Configurable[ConfigT], ABC):
    """Chooses ``context.num_samples`` of the n candidates.

    A subclass names its parameters in ``Config`` and implements :meth:`select`. It is built from a configuration
    file (``from_params``) or from Python (``MySelector(alpha=0.5)``).

    Attributes:
        needs_eval_dataset: The trainer refuses to start without an evaluation set.
        needs_same_candidates: It compares rounds row by row, and can only choose from the same candidates each time.
    """

    name: ClassVar[str] = "selector"
    needs_eval_dataset: ClassVar[bool] = False
    needs_same_candidates: ClassVar[bool] = False

    @property
    def reads_text(self) -> tuple[str, ...]:
        """Data sets (``train_dataset``, ``eval_dataset``) of which it reads what rows say, not their tokens alone.

        That is ``Sample.messages``, which rows that a foreign trainer tokenised do not have. The default names none.
        """
        return ()

    def check_data(self, samples: Sequence[Sample]) -> None:
        """Raise if the candidates do not fit what the selector has on disk, before a model is loaded.

        Called by training, selection and ``doctor``. The default accepts everything.

        Args:
            samples: The candidates; rows without a token to learn may be among them.
        """
        del samples

    def check(self, context: SelectionContext) -> None:
        """Raise before any work is lost if a selection with this context cannot succeed.

        Called once before training starts, with ``step`` 0 and the ``num_samples`` of the largest selection to come.
        The default accepts everything.
        """
        del context

    @abstractmethod
    def select(self, context: SelectionContext) -> Selection:
        """Select ``context.num_samples`` candidates.

        Returns:
            A selection whose ``indices`` are positions in ``context.train_dataset``, best first; distinct, unless it
            says ``repeats``.

        Raises:
            SelectionError: No valid selection of that size exists.
        """

    def plan(self, context: SelectionContext) -> Plan:
        """What :meth:`select` would compute with this context, for a dry run; nothing is computed here.

        The default plans nothing: the selection costs no time worth predicting.
        """
        del context
        return Plan()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state that a resumed run needs; empty for selectors without memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
        del state

    def close(self) -> None:
        """Free what the selector holds (engines, connections). Called when training ends, however it ends."""
        return None
