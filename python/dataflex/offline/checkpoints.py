"""Checkpoints that a selection can look from: those of this package, and those of transformers' Trainer and TRL."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from dataflex.errors import CheckpointError
from dataflex.offline.transformers_checkpoint import TransformersCheckpoint
from dataflex.training import checkpoint
from dataflex.training.tracking import LOG_FILE
from dataflex.utils.foreign import JSON, foreign

ADAPTER_CONFIG = "adapter_config.json"
_FUNCTION = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "bias")
"""Settings of an adapter that fix what its weights compute."""


class OwnCheckpoint:
    """A checkpoint folder of :class:`dataflex.Trainer`.

    Attributes:
        directory: The folder.
        step: Optimizer steps taken; without a state (``save_only_model``) those of its name, 0 if that has none.

    Raises:
        CheckpointError: The folder is no checkpoint, or a damaged one.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._state = checkpoint.read_state(directory)
        named = checkpoint.named_step(directory.resolve()) or 0
        self.step = int(self._state["step"]) if self._state else named

    def load_weights(self, model: nn.Module) -> None:
        """Put the adapter, or the whole model, into ``model``."""
        checkpoint.load_weights(self.directory, model)

    def optimizer(self, model: nn.Module, *, needed: bool) -> torch.optim.Optimizer | None:
        """AdamW with the moments of the run; None if it was saved without and is not needed.

        Raises:
            CheckpointError: It is needed and there is none, or it is of another model.
        """
        return checkpoint.load_optimizer(self.directory, self._state, model) if self._state or needed else None

    def logged_rate(self) -> float:
        """Mean learning rate, over the logged steps, of the epoch (one cycle of the schedule) that it lies in.

        The entries come from the log of its run, or, if that is gone, from the checkpoint itself, which knows those
        before it.

        Raises:
            CheckpointError: It has no state, or no step of its epoch was logged.
        """
        hint = "pass learning_rates, one a checkpoint"
        state = self._state
        if state is None:
            text = f"{self.directory} was saved with save_only_model: it knows no learning rates"
            raise CheckpointError(text, hint=hint)
        schedule = state["facts"]["schedule"]
        cycle = schedule["warmup_step"] + schedule["update_step"] * schedule["update_times"]
        epoch = max(math.ceil(self.step / cycle), 1)
        rates = [
            entry["learning_rate"]
            for entry in self._log() or state["history"]
            if "learning_rate" in entry and (epoch - 1) * cycle < entry["current_steps"] <= epoch * cycle
        ]
        if not rates:
            steps = f"{(epoch - 1) * cycle + 1} to {epoch * cycle}"
            raise CheckpointError(f"{self.directory}: no learning rate was logged in steps {steps}", hint=hint)
        return fmean(rates)

    def _log(self) -> list[dict[str, Any]]:
        """Entries of the log of its run; none if that is gone."""
        file = self.directory.parent / LOG_FILE
        if not file.exists():
            return []
        with foreign(CheckpointError, f"cannot read {file}"):
            lines = file.read_text(encoding="utf-8").splitlines()
        entries = []
        for line in lines:
            with suppress(ValueError):  # the last line of a run that was killed may be torn
                entries.append(json.loads(line))
        return entries


def open_checkpoint(directory: Path) -> OwnCheckpoint | TransformersCheckpoint:
    """The checkpoint in a folder, whoever wrote it.

    Raises:
        CheckpointError: The folder is no checkpoint, or a damaged one.
    """
    if not (directory / checkpoint.MANIFEST).exists() and TransformersCheckpoint.is_one(directory):
        return TransformersCheckpoint(directory)
    return OwnCheckpoint(directory)


def check_adapter(directory: Path, model: nn.Module) -> None:
    """Raise CheckpointError if the checkpoint's adapter computes something else than the model's, all reasons at once.

    The weights alone do not tell: with another ``lora_alpha`` they are another function.
    """
    file = directory / ADAPTER_CONFIG
    if not isinstance(model, PeftModel) or not file.exists():
        return
    with foreign(CheckpointError, f"cannot read {file}", JSON):
        saved: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
    own = json.loads(json.dumps(model.active_peft_config.to_dict(), default=str))
    wrong = [
        f"{key} {saved[key]!r}, the model {own[key]!r}"
        for key in _FUNCTION
        if key in saved and key in own and saved[key] != own[key]
    ]
    if wrong:
        raise CheckpointError(
            f"{directory} holds another adapter than the model: it has {'; '.join(wrong)}",
            hint="build the model's adapter with the settings of the run: PeftModel.from_pretrained(base, checkpoint, "
            "is_trainable=True)",
        )
