"""The record of what samples counted: ``weights/steps.jsonl``, a line a step, appended as steps are taken."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dataflex.curriculum.step import RowLosses
from dataflex.errors import TrainingError
from dataflex.utils.files import write_text
from dataflex.utils.foreign import foreign

DIGITS = 6
"""Decimal places of weights and losses in the record."""


class WeightFile:
    """Lines of the steps that were weighed: number of the step, positions of its rows, their weights and losses.

    A run that goes on from a checkpoint drops the lines of later steps, which it takes again, and one that a kill tore.

    Args:
        output_dir: Folder of the run.
    """

    def __init__(self, output_dir: Path) -> None:
        self._path = output_dir / "weights" / "steps.jsonl"
        self._begun = False

    def add(self, step: int, rows: Sequence[int], losses: RowLosses) -> None:
        """Append a step; the main process calls it, after all earlier steps.

        Args:
            step: Its number, from 1.
            rows: Positions of its B rows.
            losses: What they lost, and what they counted.
        """
        means = (losses.sums / losses.tokens).tolist()
        entry = {
            "step": step,
            "rows": list(rows),
            "weights": [round(weight, DIGITS) for weight in losses.weights.tolist()],
            "losses": [round(loss, DIGITS) if math.isfinite(loss) else None for loss in means],
        }
        if not self._begun:
            write_text(self._path, "".join(self._lines_before(step)))
            self._begun = True
        with foreign(TrainingError, f"cannot write {self._path}"), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _lines_before(self, step: int) -> Iterator[str]:
        """Whole lines of earlier steps that are there."""
        if not self._path.is_file():
            return
        with foreign(TrainingError, f"cannot read {self._path}"):
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for line in lines:
            found = _step_of(line)
            if found is not None and found < step:
                yield line


def _step_of(line: str) -> int | None:
    """The step of a line; None for one that is torn."""
    try:
        entry: Any = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return entry["step"] if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None
