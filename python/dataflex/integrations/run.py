"""One call of a foreign trainer's ``train``: its curriculum, what its checkpoints hold, how it goes on from them."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from accelerate.utils import get_mixed_precision_context_manager

from dataflex.curriculum.curriculum import Curriculum, Loop
from dataflex.errors import CheckpointError, TrainingError
from dataflex.integrations.losses import HANDED_OVER, TrainerLoss
from dataflex.integrations.rows import RowStream
from dataflex.report.page import refresh_page
from dataflex.training import facts
from dataflex.training.component import Component
from dataflex.training.folder import exclusive, folders_of
from dataflex.training.sameness import check_ranks, compare
from dataflex.types import Autocast
from dataflex.utils.distributed import Ranks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from dataflex.curriculum.step import StepWork
    from dataflex.data.templates import ChatTemplate

logger = logging.getLogger(__name__)

STATE_KEY = "dataflex_curriculum"
"""Where ``TrainerState.stateful_callbacks`` holds what a checkpoint has to know."""


class Run:
    """One call of the trainer's ``train``: its curriculum, and how far the trainer's first reading has to skip.

    It holds the folders that it writes to, so that no other process writes there meanwhile.

    Args:
        curriculum: Its curriculum.
        component: What decides in it.
        tokenizer: The trainer's.
        template: Chat template of prompts.
        stream: The rows that the trainer reads.
        data: The candidates.
        loss: What the trainer may have been handed as its loss.

    Attributes:
        curriculum: Its curriculum.
        leave: Frees what the component holds, and the folders, once; the rows are no trainer's any more. A run that
            nobody leaves, since its trainer raised, does it when nothing refers to it, when the next run of this kind
            wants one of its folders, or when the process ends.
    """

    _begun: ClassVar[weakref.WeakSet[Run]] = weakref.WeakSet()

    def __init__(
        self,
        curriculum: Curriculum,
        component: Component,
        tokenizer: PreTrainedTokenizerBase,
        template: ChatTemplate,
        stream: RowStream,
        data: Any,
        loss: TrainerLoss,
    ) -> None:
        self.curriculum, self._component, self._loss = curriculum, component, loss
        self._tokenizer, self._template = tokenizer, template
        self._stream, self._data = stream, data
        self._skipped = self._stop = 0
        self._work: StepWork | None = None
        self._noted: dict[str, Any] = {}
        self._ranks = ranks()
        self._autocast = autocast()
        self._folders = {folder.resolve() for folder in folders_of(curriculum.output_dir, component.found)}
        self._held = ExitStack()
        self.leave = weakref.finalize(self, _leave, curriculum, stream, self._held)
        self._begun.add(self)

    def go_on(self, noted: Mapping[str, Any], args: Any, state: Any, model: torch.nn.Module, optimizer: Any) -> None:
        """Note the facts of the run; where it goes on, compare them and take over the state of the curriculum.

        Raises:
            CheckpointError: The checkpoint is of a trainer without a curriculum.
            TrainingError: It belongs to another run, or the processes differ.
            DataflexError: Another process writes to its folders, or they cannot be written.
        """
        found = self._facts()
        check_ranks(found, self._ranks)
        self._hold_folders()
        if state.global_step > 0:
            check_same(noted, found, state.global_step)
            self.curriculum.load_state_dict(noted["curriculum"])
            if not args.ignore_data_skip:
                self._skipped = state.global_step * self.curriculum.global_batch
        self._ranks.on_main(lambda: _forget(self.curriculum.output_dir, state.global_step))
        self._noted = {"facts": found, "date": noted.get("date") or self._template.now.isoformat()}
        self._keep(state)
        self.curriculum.check(self._loop(model, optimizer))

    def _hold_folders(self) -> None:
        for other in [*self._begun]:  # of this process: its trainer raised, and an error or a variable still knows it
            if other is not self and other.leave.alive and other._folders & self._folders:
                logger.info("%s: an earlier run of this process is given up", other.curriculum.output_dir)
                other.leave()
        self._held.enter_context(exclusive([*self._folders], self._ranks))

    def enter(self, state: Any, model: torch.nn.Module, optimizer: Any) -> Mapping[str, float | int]:
        """Select where the next phase wants it, and let the trainer's next reading be the phase's (remaining) rows.

        Returns:
            Numbers about the selection or the mixture; none where there was none.
        """
        step = state.global_step
        if step >= self.curriculum.total_steps:  # a finished run that is resumed: its only reading is empty
            self._stream.show(self._data, [])
            return {}
        statistics: Mapping[str, float | int] = {}
        phase = self.curriculum.phase(step)
        self._stop = phase.stop
        if self.curriculum.wants_selection(phase):
            statistics = self.curriculum.select(phase, self._loop(model, optimizer), step)
            self._keep(state)
            if self._ranks.is_main:
                refresh_page(self.curriculum.output_dir)
        rows = chain.from_iterable(self.curriculum.rows(each) for each in range(step, phase.stop))
        thrown_away = self.curriculum.rows(step)[:1] * self._skipped
        self._skipped = 0
        self._stream.show(self._data, chain(thrown_away, rows))
        return statistics

    def begin_step(self, args: Any, state: Any, model: torch.nn.Module, optimizer: Any) -> None:
        """Make the weights of the step that comes, and let the trainer's loss expect its rows."""
        step, curriculum = state.global_step, self.curriculum
        examples = [curriculum.train_dataset[row] for row in curriculum.rows(step)]
        self._work = curriculum.step_work(step, examples, self._loop(model, optimizer))
        self._loss.begin(
            examples,
            self._work,
            micro_batch=args.train_batch_size,
            ranks=self._ranks,
            label_smoothing=args.label_smoothing_factor,
        )

    def end_step(self, state: Any) -> Mapping[str, float | int]:
        """Take the losses of the step that was taken.

        Returns:
            Numbers about its weights; none where it had none.

        Raises:
            TrainingError: The component needs losses, and the trainer has a loss of its own.
        """
        called, losses = self._loss.end(self._ranks)
        if self.curriculum.needs_losses and not called:
            raise TrainingError(
                f"{self._component.found.name!r} needs the losses of rows, and the trainer computes them by itself",
                hint=HANDED_OVER,
            )
        if self._work is None or losses is None:
            return {}
        statistics = self._work.done(losses)
        self._keep(state)
        return statistics

    def ends_phase(self, step: int) -> bool:
        """Whether the phase that was entered last has no step after this one."""
        return step == self._stop

    def selects_after(self, step: int) -> bool:
        """Whether a selection comes next."""
        curriculum = self.curriculum
        return step < curriculum.total_steps and curriculum.wants_selection(curriculum.phase(step))

    def _keep(self, state: Any) -> None:
        state.stateful_callbacks[STATE_KEY] = {**self._noted, "curriculum": self.curriculum.state_dict()}

    def _loop(self, model: torch.nn.Module, optimizer: Any) -> Loop:
        raw = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        return Loop(model, self._tokenizer, self._template, raw, self._autocast, self._ranks)

    def _facts(self) -> dict[str, Any]:
        curriculum = self.curriculum
        return facts.as_json(
            {
                **facts.data_facts(curriculum.train_dataset, curriculum.eval_dataset, self._template),
                **facts.selector_facts(self._component.selector),
                **facts.mixer_facts(self._component.mixer, curriculum),
                **facts.weighter_facts(self._component.weighter),
                **facts.common_facts(self._ranks.count),
                "schedule": asdict(curriculum.schedule),
                "total_steps": curriculum.total_steps,
                "global_batch": curriculum.global_batch,
                "seed": curriculum.seed,
            }
        )


def _leave(curriculum: Curriculum, stream: RowStream, held: ExitStack) -> None:
    with held:
        curriculum.close()
        stream.close()


def noted_state(state: Any) -> Mapping[str, Any]:
    """What the checkpoint that a trainer goes on from holds of the curriculum; empty where it starts.

    Raises:
        CheckpointError: It holds nothing of it.
    """
    if state.global_step == 0:
        return {}
    noted = state.stateful_callbacks.get(STATE_KEY)
    if not isinstance(noted, Mapping):
        raise CheckpointError(
            f"the checkpoint of step {state.global_step} was saved by a trainer without a curriculum",
            hint="start over, or resume without the curriculum",
        )
    return noted


def check_same(noted: Mapping[str, Any], found: Mapping[str, Any], step: int) -> None:
    """Say how a run differs from the one that saved a checkpoint.

    Raises:
        TrainingError: It is another run.
    """
    differences = compare(noted["facts"], found)
    if differences.refused:
        raise TrainingError(
            f"the checkpoint of step {step} belongs to another run: {', '.join(differences.refused)}",
            hint="start over, or resume with what the run began with",
        )
    if differences.said:
        logger.info("goes on with other settings, which the outcome may differ by: %s", ", ".join(differences.said))


def ranks() -> Ranks:
    """The processes of the trainer's accelerator."""
    state = AcceleratorState()
    return Ranks(state.process_index, state.num_processes, state.device)


def autocast() -> Autocast:
    """The precision of the trainer's forward passes."""
    if AcceleratorState().mixed_precision not in ("fp16", "bf16"):
        return nullcontext
    return partial(get_mixed_precision_context_manager, native_amp=True)


def _forget(output_dir: Path, step: int) -> None:
    """Remove records of selections and mixtures after a step, of a run that was given up."""
    for file in (*(output_dir / "selections").glob("step-*.parquet"), *(output_dir / "mixtures").glob("step-*.json")):
        number = file.stem.removeprefix("step-")
        if number.isdecimal() and int(number) >= step:
            file.unlink()
