"""The files of an output folder, read for the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataflex.errors import DataError
from dataflex.utils.facts import numbers
from dataflex.utils.foreign import JSON, arrow_errors, foreign

_OTHER_RUN = "`dataflex report` reads what a run of dataflex has written; run it again, or name its output_dir"


@dataclass(frozen=True, slots=True)
class SelectionFile:
    """A selection as the run stored it; n candidates.

    Attributes:
        step: Optimizer steps before it.
        facts: What the file says about itself: selector, round, report, excerpts.
        tasks: Task of each candidate, None where it has none.
        sources: Dataset of each candidate, None where it has no name; empty in files of before they were written.
        tokens: Length of each candidate; empty in files of before they were written.
        scores: ``(n,)`` float64, nan where there is none.
        chosen: ``(n,)`` bool.
    """

    step: int
    facts: Mapping[str, Any]
    tasks: list[str | None]
    sources: list[str | None]
    tokens: list[int]
    scores: NDArray[np.float64]
    chosen: NDArray[np.bool_]

    @property
    def report(self) -> Mapping[str, Any]:
        """What the selector says about the selection."""
        found = self.facts.get("report")
        return found if isinstance(found, Mapping) else {}

    @property
    def looked_at(self) -> int | None:
        """How many candidates have a score; None where all have one, or the method gives none."""
        count = int(np.sum(~np.isnan(self.scores)))
        return count if 0 < count < len(self.scores) else None

    @property
    def seconds(self) -> dict[str, float]:
        """Of each phase of the selection."""
        return numbers(self.report.get("seconds"))

    @property
    def left_out(self) -> dict[str, float]:
        """How many of what could not be used."""
        return numbers(self.report.get("left_out"))


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything that the report shows.

    Attributes:
        output_dir: Folder of the run.
        results: What ``all_results.json`` holds.
        selections: The selections, by step.
        mixtures: What ``mixtures/`` holds, by step.
        weights: The log entries of steps with weights.
    """

    output_dir: Path
    results: Mapping[str, Any]
    selections: list[SelectionFile] = field(default_factory=list)
    mixtures: list[Mapping[str, Any]] = field(default_factory=list)
    weights: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds by kind of work; a selection is split into its parts."""
        spent = numbers(self.results.get("seconds"))
        parts: dict[str, float] = {}
        for selection in self.selections:
            for name, value in selection.seconds.items():
                parts[f"selection: {name}"] = parts.get(f"selection: {name}", 0.0) + value
        if parts and "selection" in spent:
            parts["selection: other"] = max(spent.pop("selection") - sum(parts.values()), 0.0)
        return {**spent, **parts}


def read_report(output_dir: Path) -> RunReport:
    """Read what a run left in its output folder.

    Raises:
        DataError: The folder is not that of a finished run, or a file of it is damaged.
    """
    path = output_dir / "all_results.json"
    if not path.exists():
        raise DataError(f"{output_dir} holds no finished run: all_results.json is missing", hint=_OTHER_RUN)
    with foreign(DataError, f"cannot read {path}", JSON):
        results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict):
        raise DataError(f"{path} holds {type(results).__name__}, expected an object", hint=_OTHER_RUN)
    return RunReport(
        output_dir,
        results,
        [_read_selection(step, file) for step, file in _steps(output_dir / "selections", "step-*.parquet")],
        [_read_object(file) for _, file in _steps(output_dir / "mixtures", "step-*.json")],
        _weights(output_dir / "trainer_log.jsonl"),
    )


def _steps(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    """The files of a folder by the step in their names."""
    found = [(_step(file), file) for file in folder.glob(pattern)]
    return sorted((step, file) for step, file in found if step is not None)


def _read_object(path: Path) -> Mapping[str, Any]:
    with foreign(DataError, f"cannot read {path}", JSON):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}, expected an object", hint=_OTHER_RUN)
    return value


def _weights(path: Path) -> list[Mapping[str, Any]]:
    """Entries of a log that have weights; a line that cannot be read is left out."""
    if not path.is_file():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if '"weight_median"' in line:
            with suppress(ValueError):
                entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]


def _step(path: Path) -> int | None:
    """The number in ``step-N.parquet``; None for files of another name that lie there."""
    number = path.stem.removeprefix("step-")
    return int(number) if number.isascii() and number.isdecimal() else None


def _read_selection(step: int, path: Path) -> SelectionFile:
    with foreign(DataError, f"cannot read {path}", arrow_errors()):
        table = pq.read_table(path)
    missing = [name for name in ("task", "score", "chosen") if name not in table.column_names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}", hint=_OTHER_RUN)
    with foreign(DataError, f"the metadata of {path} is damaged", JSON):
        facts = json.loads((table.schema.metadata or {}).get(b"dataflex", b"{}"))
    columns = {
        name: table.column(name).to_pylist() for name in ("task", "source", "tokens") if name in table.column_names
    }
    with foreign(DataError, f"a column of {path} has another type", (*arrow_errors(), ValueError, TypeError)):
        scores = table.column("score").to_numpy(zero_copy_only=False).astype(np.float64)
        chosen = table.column("chosen").to_numpy(zero_copy_only=False).astype(np.bool_)
    return SelectionFile(
        step,
        facts if isinstance(facts, dict) else {},
        columns["task"],
        columns.get("source", []),
        columns.get("tokens", []),
        scores,
        chosen,
    )
