"""Saving a run so that it can go on, and going on: everything that a checkpoint holds, put together and taken apart."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from dataflex.curriculum.curriculum import Curriculum
from dataflex.errors import CheckpointError, TrainingError
from dataflex.models.sharding import whole_weights
from dataflex.training import checkpoint
from dataflex.training.arguments import TrainingArguments
from dataflex.training.sameness import compare
from dataflex.training.state import RunState
from dataflex.utils.distributed import Ranks
from dataflex.utils.files import atomic_directory

logger = logging.getLogger(__name__)

BEST_MODEL = "best_model"
WITHOUT_BEST = "load_best_model_at_end: false goes on without it"


@dataclass(slots=True)
class Checkpointer:
    """Saves and restores a run; every rank calls it, the main process writes.

    Attributes:
        model: Unwrapped model.
        tokenizer: Saved beside it.
        optimizer: Its moments are restored.
        scheduler: Learning-rate schedule over ``optimizer``.
        accelerator: Holds the fp16 gradient scaler.
        curriculum: Its state is saved.
        args: Output folder and what to keep.
        ranks: The processes of the run.
        current: The checkpoint that holds the run as it is: the one restored or saved last.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    scheduler: Any
    accelerator: Accelerator
    curriculum: Curriculum
    args: TrainingArguments
    ranks: Ranks
    current: Path | None = None

    def restore(self, source: Path, facts: Mapping[str, Any]) -> RunState:
        """Put everything into the state of a checkpoint.

        Args:
            source: Folder of the checkpoint.
            facts: What the run that saved it must have in common with this one.

        Raises:
            CheckpointError: The checkpoint is damaged, of another model, or holds the model only; or its run's best
                model is to be loaded at the end and is gone.
            TrainingError: It belongs to another run; the differences are named.
        """
        stored = checkpoint.resumable_state(source)
        _check_same(source, stored.get("facts"), facts)
        state = RunState.from_json(checkpoint.load_checkpoint(source, stored, self.model, self.optimizer, self.ranks))
        self.scheduler.load_state_dict(state.scheduler)
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state.scaler)
        self.curriculum.load_state_dict(state.curriculum)
        if self.args.load_best_model_at_end and state.best.step is not None:
            kept = self.ranks.on_main(lambda: self._bring_best(source, state))
            if kept != state.best.step:
                state.best = replace(state.best, value=None, step=None)
        self.current = source.resolve()
        return state

    def _bring_best(self, source: Path, state: RunState) -> int | None:
        """Copy the best model so far from the run of ``source``, where that is another folder; returns its step."""
        stored, own = source.parent / BEST_MODEL, self.args.output_dir / BEST_MODEL
        for moved in source.parent.glob(f".{BEST_MODEL}.*.old"):  # killed between the two renames of a replacement
            if not stored.exists():
                moved.replace(stored)
        if not stored.is_dir():
            raise CheckpointError(
                f"{source} belongs to a run whose best model (step {state.best.step}) is not in {stored}",
                hint=WITHOUT_BEST,
            )
        problem = checkpoint.damage(stored)
        if problem:
            raise CheckpointError(
                f"the best model of the run (step {state.best.step}), {stored}, is damaged: {problem}",
                hint=WITHOUT_BEST,
            )
        if stored.resolve() != own.resolve():
            with atomic_directory(own) as staged:
                shutil.copytree(stored, staged, dirs_exist_ok=True)
        step = checkpoint.noted_step(own)
        if step != state.best.step:  # the run went on after this checkpoint, and replaced it
            logger.warning("the best model of step %s is gone: of later ones, the best is kept", state.best.step)
        return step

    def save(self, state: RunState, optimizer: Callable[[], torch.optim.Optimizer]) -> None:
        """Save ``checkpoint-STEP``, unless it was saved or restored just now.

        Args:
            state: State of the run; scheduler, scaler and curriculum are filled in.
            optimizer: Returns the optimizer with the moments of every parameter; asked on every rank.
        """
        directory = self.args.output_dir / f"{checkpoint.PREFIX}{state.step}"
        if self.current == directory.resolve():
            return
        state.scheduler = self.scheduler.state_dict()
        state.scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        state.note_curriculum(self.curriculum.state_dict())
        generators = checkpoint.random_states(self.ranks)
        moments = None if self.args.save_only_model else optimizer()
        weights = whole_weights(self.model, keep=self.ranks.is_main)

        def write() -> None:
            checkpoint.save_checkpoint(
                directory,
                self.model,
                self.tokenizer,
                optimizer=moments,
                state=state.to_json(),
                generators=generators,
                step=state.step,
                weights=weights,
            )
            checkpoint.prune_checkpoints(self.args.output_dir, self.args.save_total_limit, directory)

        self.ranks.on_main(write)
        if self.ranks.is_main:
            logger.debug("saved %s", directory)
        self.current = directory.resolve()

    def save_best(self, step: int) -> None:
        """Keep the model as it is, after ``step`` steps, as the best one so far."""
        directory = self.args.output_dir / BEST_MODEL
        weights = whole_weights(self.model, keep=self.ranks.is_main)
        self.ranks.on_main(
            lambda: checkpoint.save_checkpoint(directory, self.model, self.tokenizer, step=step, weights=weights)
        )

    def load_best(self) -> None:
        """Load the weights that :meth:`save_best` kept last.

        Raises:
            CheckpointError: They are not what was saved.
        """
        directory = self.args.output_dir / BEST_MODEL
        problem = self.ranks.on_main(lambda: checkpoint.damage(directory))
        if problem:
            raise CheckpointError(f"the best model, {directory}, is damaged: {problem}", hint=WITHOUT_BEST)
        checkpoint.load_weights(directory, self.model)


def _check_same(source: Path, noted: Any, facts: Mapping[str, Any]) -> None:
    """Say how a run differs from the one that saved a checkpoint.

    Raises:
        TrainingError: It is another run.
    """
    differences = compare(noted if isinstance(noted, Mapping) else {}, facts)
    if differences.refused:
        raise TrainingError(
            f"{source} belongs to another run: {', '.join(differences.refused)}",
            hint="start over with overwrite_output_dir: true, or name another output_dir",
        )
    if differences.said:
        logger.info("goes on with other settings, which the outcome may differ by: %s", ", ".join(differences.said))
    if differences.unknown:
        logger.warning(
            "%s is of another version, which did not note these facts of the run; they could not be compared: %s",
            source,
            ", ".join(differences.unknown),
        )
