"""Phases, selections, rows: what a loop asks before every step, and nothing of how it trains.

A loop walks through :attr:`Curriculum.phases`. Where :meth:`Curriculum.wants_selection` says so, it calls
:meth:`Curriculum.select` with its model and optimizer as they are; :meth:`Curriculum.rows` then gives the rows of every
step. They follow from the seed, the step and the selection alone, so that a resumed loop, or another one with the same
model, trains on the same rows in the same order. Every process holds the same curriculum; the main one writes files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataflex.curriculum import story
from dataflex.curriculum.schedule import (
    Phase,
    Schedule,
    longest_selection,
    random_order,
    selected_order,
    selected_samples,
)
from dataflex.curriculum.selection_file import write_selection
from dataflex.errors import SelectionError
from dataflex.plugins.registry import registry
from dataflex.selectors.base import Selection, SelectionContext, Selector
from dataflex.selectors.outcome import check_agreement, check_selection
from dataflex.types import Autocast
from dataflex.utils.distributed import Ranks
from dataflex.utils.progress import Stopwatch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from dataflex.curriculum.step import StepWork
    from dataflex.data.dataset import Example, TokenizedDataset
    from dataflex.data.templates import ChatTemplate

SELECTION = "selection"
"""Name of the stopwatch's phase in which selections are counted."""


@dataclass(frozen=True, slots=True)
class Loop:
    """What a loop shows of itself at a boundary between two phases; the attributes of the selection's context."""

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    optimizer: torch.optim.Optimizer | None
    autocast: Autocast
    ranks: Ranks


class Curriculum:
    """Joins a schedule with a selector and decides which rows every step trains on.

    Args:
        schedule: When to select.
        selector: Picks the rows of each phase but the random ones; None: there are only those.
        train_dataset: n candidates.
        eval_dataset: q target samples, or None.
        num_train_epochs: How often the schedule is gone through.
        global_batch: Rows of one step, of all processes together.
        seed: Seed of the draws and of the selector.
        output_dir: Folder of the run: ``selections/`` and what the selector writes.
        shuffle: False: the random phases take the rows in the dataset's own order.
        task_column: Column whose value is noted as a row's task in ``selections/``.

    Attributes:
        phases: The phases of the run in order.
        total_steps: Steps of the run.
        round: Round of the current selection, 0 before the first.
        indices: Positions that it chose, best first.
    """

    def __init__(
        self,
        schedule: Schedule,
        selector: Selector[Any] | None,
        train_dataset: TokenizedDataset,
        eval_dataset: TokenizedDataset | None = None,
        *,
        num_train_epochs: float = 1.0,
        global_batch: int,
        seed: int,
        output_dir: Path,
        shuffle: bool = True,
        task_column: str = "task",
    ) -> None:
        self.schedule, self.selector = schedule, selector
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset
        self.global_batch, self.seed, self.output_dir = global_batch, seed, output_dir
        self.phases = schedule.phases(num_train_epochs)
        self.total_steps = schedule.total_steps(num_train_epochs)
        self.round = 0
        self.indices: list[int] = []
        self._shuffle, self._task_column = shuffle, task_column
        self._ordered: tuple[Phase, NDArray[np.int64]] | None = None

    def check(self, loop: Loop) -> None:
        """Let the selector raise, before any work is lost, if its selections cannot succeed."""
        if self.selector is not None:
            largest = longest_selection(self.phases) * self.global_batch
            self.selector.check(self._context(loop, largest, step=0, round_number=0))

    def phase(self, step: int) -> Phase:
        """The phase of the step that comes after ``step`` steps.

        Raises:
            IndexError: The run has no such step.
        """
        for phase in self.phases:
            if phase.start <= step < phase.stop:
                return phase
        raise IndexError(f"a run of {self.total_steps} steps has none after step {step}")

    def wants_selection(self, phase: Phase) -> bool:
        """Whether a phase has to be selected for before its rows are known."""
        return phase.round is not None and phase.round != self.round

    def select(self, phase: Phase, loop: Loop, step: int, watch: Stopwatch | None = None) -> dict[str, float | int]:
        """Select the rows of a phase: check them, tell plugins, write ``selections/step-STEP.parquet``, say it.

        Every process calls it.

        Args:
            phase: A phase on selected rows.
            loop: The loop as it is.
            step: Steps taken so far.
            watch: Counts the seconds of the selector as ``selection``.

        Returns:
            Numbers about the selection, for logs and trackers.

        Raises:
            DataflexError: Whatever the selector raises.
            SelectionError: It returned something that is no selection, or another one on another rank.
        """
        assert self.selector is not None
        assert phase.round is not None
        watch = watch or Stopwatch()
        context = self._context(loop, self._rows_of(phase), step=step, round_number=phase.round)
        before = watch.seconds.get(SELECTION, 0.0)
        with watch.phase(SELECTION):
            selection = self.selector.select(context)
        seconds = watch.seconds[SELECTION] - before
        check_selection(selection, len(self.train_dataset), context.num_samples)
        check_agreement(selection, loop.ranks)
        loop.ranks.on_main(lambda: self._publish(selection, context))
        statistics = story.selection_statistics(selection, self.indices, seconds)
        if loop.ranks.is_main:
            story.log_selection(selection, len(self.train_dataset), statistics)
        self._take(phase.round, selection.indices.tolist())
        return statistics

    def rows(self, step: int) -> list[int]:
        """Positions of the rows of the step that comes after ``step`` steps, in the order of training.

        Raises:
            IndexError: The run has no such step.
            SelectionError: Its phase has not been selected for.
        """
        phase = self.phase(step)
        if self._ordered is None or self._ordered[0] != phase:
            self._ordered = phase, self._order(phase)
        offset = (step - phase.start) * self.global_batch
        rows: list[int] = self._ordered[1][offset : offset + self.global_batch].tolist()
        return rows

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: ``round``, ``indices`` and the selector's own (``selector``)."""
        own = {} if self.selector is None else self.selector.state_dict()
        return {"round": self.round, "indices": list(self.indices), "selector": own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self._take(state["round"], list(state["indices"]))
        if self.selector is not None:
            self.selector.load_state_dict(state["selector"])

    @property
    def epoch_steps(self) -> int:
        """Steps between evaluations that come once an epoch."""
        return self.schedule.cycle_steps

    @property
    def needs_losses(self) -> bool:
        """Whether a loop has to compute the losses of each row for :meth:`step_work`."""
        return False

    @property
    def made(self) -> dict[str, int]:
        """How often the component decided so far, for the results."""
        return {"selections": self.round}

    def plan(self) -> str:
        """How long the run is, and where it selects, as a line."""
        return story.plan_line(self.phases, self.global_batch, len(self.train_dataset))

    def step_work(self, step: int, examples: Sequence[Example], loop: Loop) -> StepWork | None:
        """What a loop has to do for the curriculum in the step that comes after ``step`` steps; None: nothing.

        Args:
            step: Steps taken so far.
            examples: The step's global batch.
            loop: The loop as it is.
        """
        del step, examples, loop
        return None

    def close(self) -> None:
        """Free what the selector holds."""
        if self.selector is not None:
            self.selector.close()

    def _take(self, round_number: int, indices: list[int]) -> None:
        self.round, self.indices = round_number, indices
        self._ordered = None

    def _rows_of(self, phase: Phase) -> int:
        return (phase.stop - phase.start) * self.global_batch

    def _order(self, phase: Phase) -> NDArray[np.int64]:
        """Positions of all rows of a phase, in the order of training."""
        if phase.round is None:
            drawn = sum(self._rows_of(other) for other in self.phases if not other.round and other.stop <= phase.start)
            return random_order(
                len(self.train_dataset), drawn, self._rows_of(phase), seed=self.seed, shuffle=self._shuffle
            )
        if phase.round != self.round:
            raise SelectionError(
                f"steps {phase.start} to {phase.stop - 1} train on selection {phase.round}, and the last one made is "
                f"{self.round}",
                hint="call select at the boundary, before the rows are asked for",
            )
        chosen = np.array(self.indices, dtype=np.int64)
        return selected_order(chosen, self._rows_of(phase), seed=self.seed, round_number=phase.round)

    def _publish(self, selection: Selection, context: SelectionContext) -> None:
        """Tell plugins of a selection and write its file."""
        registry().call("on_selection", selection=selection, context=context)
        file = self.output_dir / "selections" / f"step-{context.step}.parquet"
        write_selection(file, selection, self.train_dataset, self._task_column)

    def _context(self, loop: Loop, wanted: int, *, step: int, round_number: int) -> SelectionContext:
        return SelectionContext(
            model=loop.model,
            tokenizer=loop.tokenizer,
            template=loop.template,
            train_dataset=self.train_dataset,
            eval_dataset=self.eval_dataset,
            num_samples=min(wanted, len(self.train_dataset)),
            step=step,
            round=round_number,
            num_rounds=max((phase.round or 0 for phase in self.phases), default=0),
            total_samples=selected_samples(self.phases, self.global_batch, len(self.train_dataset)),
            seed=self.seed,
            output_dir=self.output_dir,
            optimizer=loop.optimizer,
            autocast=loop.autocast,
            ranks=loop.ranks,
        )
