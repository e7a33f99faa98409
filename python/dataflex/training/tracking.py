"""What a run logs: a JSON-lines file, the trackers, and a plot of the loss."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from dataflex.errors import TrainingError
from dataflex.report.drawing import png
from dataflex.report.pictures import losses
from dataflex.training.story import log_line
from dataflex.utils.files import atomic_path, write_text
from dataflex.utils.foreign import foreign

logger = logging.getLogger(__name__)

LOG_FILE = "trainer_log.jsonl"
PLOT_FILE = "training_loss.png"


class RunLog:
    """Log entries of one run, kept in ``history`` and written to ``trainer_log.jsonl`` as they come.

    Args:
        output_dir: Folder of the run.
        accelerator: Passes numbers on to the trackers; only the main process writes.
        total_steps: Steps of the run, for percentages and the remaining time.
        history: Entries of the part of the run that a resumed run goes on from.
    """

    def __init__(
        self, output_dir: Path, accelerator: Accelerator, total_steps: int, history: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.history: list[dict[str, Any]] = [dict(entry) for entry in history]
        self._file = output_dir / LOG_FILE
        self._accelerator = accelerator
        self._total_steps = total_steps
        self._start_step = int(self.history[-1]["current_steps"]) if self.history else 0
        self._start = time.perf_counter()
        if accelerator.is_main_process:
            write_text(self._file, "".join(json.dumps(entry) + "\n" for entry in self.history))

    def add(self, step: int, values: Mapping[str, Any]) -> None:
        """Log values at a step, as a line too; a number that is not finite is null in history and file (JSON)."""
        elapsed = time.perf_counter() - self._start
        done = step - self._start_step
        entry = {
            "current_steps": step,
            "total_steps": self._total_steps,
            **{key: _json_number(value) for key, value in values.items()},
            "percentage": round(100 * step / self._total_steps, 2),
            "elapsed_time": round(elapsed, 2),
            "remaining_time": round(elapsed / done * (self._total_steps - step), 2) if done else None,
        }
        self.history.append(entry)
        if self._accelerator.is_main_process:
            with foreign(TrainingError, f"cannot write {self._file}"), self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            if line := log_line(entry):
                logger.info("%s", line)
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        self._accelerator.log(numbers, step=step)


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plot_losses(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw training and evaluation loss over steps, with a mark at each selection, as the report does."""
    figure = losses(history)
    if figure is not None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(png(figure))
