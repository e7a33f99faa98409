"""The files of a run, or of a selection without training, read for the report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from dataflex.errors import DataError
from dataflex.report.answers import Answers, read_answers
from dataflex.utils.facts import numbers
from dataflex.utils.foreign import FILES, JSON, arrow_errors, foreign

SCORES = ".scores.parquet"
"""How the file ends in which a selection without training leaves the scores of all candidates."""
PAGE = "report.html"
_OTHER_RUN = "it reads what dataflex has written: name the output_dir of a run, or a subset of `dataflex select`"


@dataclass(frozen=True, slots=True)
class SelectionFile:
    """A selection as it was stored; n candidates.

    Attributes:
        path: The file, whose other columns are read when they are asked for.
        step: Optimizer steps before it.
        facts: What the file says about itself: selector, round, report, excerpts.
        columns: Names of its columns.
        scores: ``(n,)`` float64, nan where there is none.
        chosen: ``(n,)`` bool.
    """

    path: Path
    step: int
    facts: Mapping[str, Any]
    columns: frozenset[str]
    scores: NDArray[np.float64]
    chosen: NDArray[np.bool_]

    @property
    def selector(self) -> str:
        """Name of what selected."""
        return str(self.facts.get("selector", "?"))

    @property
    def report(self) -> Mapping[str, Any]:
        """What the selector says about the selection."""
        found = self.facts.get("report")
        return found if isinstance(found, Mapping) else {}

    @property
    def excerpts(self) -> list[Mapping[str, Any]]:
        """The rows to look at, with the beginnings of their texts."""
        found = self.facts.get("excerpts")
        return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []

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

    @property
    def reliability(self) -> dict[str, float]:
        """How far two halves of the ``targets``, and of the ``answers``, agree, where that is known."""
        return numbers(self.report.get("reliability"))

    def texts(self, column: str) -> list[str | None]:
        """A column of texts, None where a candidate has none; empty in files of before it was written."""
        return self._column(column) if column in self.columns else []

    def tokens(self) -> NDArray[np.int64]:
        """Length of each candidate; empty in files of before lengths were written."""
        return np.array(self._column("tokens") if "tokens" in self.columns else [], dtype=np.int64)

    def ranks(self) -> list[int | None]:
        """Place of each chosen candidate, 0 is the best; None for the others."""
        return self._column("rank") if "rank" in self.columns else [None] * len(self.chosen)

    def rows(self) -> list[int]:
        """Number of each candidate in its source."""
        return self._column("row") if "row" in self.columns else list(range(len(self.chosen)))

    def _column(self, name: str) -> list[Any]:
        with foreign(DataError, f"cannot read {self.path}", arrow_errors()):
            values: list[Any] = pq.read_table(self.path, columns=[name]).column(name).to_pylist()
        return values


@dataclass(frozen=True, slots=True)
class RunReport:
    """Everything that the report shows.

    Attributes:
        output_dir: Folder of the run, or of the subset.
        name: What it is called.
        page: Where its page belongs.
        results: What ``all_results.json`` holds; empty while the run goes on.
        selections: The selections, by step.
        mixtures: What ``mixtures/`` holds, by step.
        history: The entries of the log.
        answers: Sampled answers with their rewards by the step of their selection.
        settings: What ``config.yaml`` holds, where a run has written it.
    """

    output_dir: Path
    name: str
    page: Path
    results: Mapping[str, Any]
    selections: list[SelectionFile] = field(default_factory=list)
    mixtures: list[Mapping[str, Any]] = field(default_factory=list)
    history: list[Mapping[str, Any]] = field(default_factory=list)
    answers: dict[int, Answers] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> list[Mapping[str, Any]]:
        """The log entries of steps with weights."""
        return [entry for entry in self.history if "weight_median" in entry]

    @property
    def trained(self) -> bool:
        """Whether it is a run that trains, not a selection alone."""
        return bool(self.results or self.history)

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


def read_report(place: Path) -> RunReport:
    """Read what a run left in its output folder, finished or not, or a selection without training beside its subset.

    Args:
        place: Output folder of a run; or the subset of ``dataflex select``, its scores, or the folder of one.

    Raises:
        DataError: There is nothing of dataflex, or several subsets, or a file is damaged.
    """
    if not place.is_dir():
        return _of_subset(place)
    results = place / "all_results.json"
    if not results.exists() and not (place / "selections").is_dir() and not (place / "trainer_log.jsonl").exists():
        return _of_subset(_only_subset(place))
    return RunReport(
        place,
        place.absolute().name,
        place / PAGE,
        _read_object(results) if results.exists() else {},
        [_read_selection(step, file) for step, file in _steps(place / "selections", "step-*.parquet")],
        [_read_object(file) for _, file in _steps(place / "mixtures", "step-*.json")],
        list(_log(place / "trainer_log.jsonl")),
        dict(_answers(place / "rollouts")),
        _settings(place / "config.yaml"),
    )


def _settings(file: Path) -> Mapping[str, Any]:
    """A run's configuration.

    Raises:
        DataError: The file is damaged.
    """
    if not file.is_file():
        return {}
    with foreign(DataError, f"cannot read {file}", (*FILES, yaml.YAMLError)):
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found if isinstance(found, Mapping) else {}


def _of_subset(place: Path) -> RunReport:
    """A selection without training, by one of its files."""
    name = place.name.removesuffix(SCORES).removesuffix(".jsonl")
    scores = place.parent / f"{name}{SCORES}"
    if not scores.is_file():
        raise DataError(f"{place} is no subset of `dataflex select`: {scores.name} is missing", hint=_OTHER_RUN)
    selection = _read_selection(None, scores)
    answers = dict(_answers(place.parent / f"{name}.work" / "rollouts"))
    page = place.parent / f"{name}.{PAGE}"
    return RunReport(place.parent, name, page, {}, [selection], answers=answers)


def _only_subset(folder: Path) -> Path:
    found = sorted(folder.glob(f"*{SCORES}"))
    if len(found) > 1:
        names = ", ".join(file.name.removesuffix(SCORES) + ".jsonl" for file in found[:5])
        raise DataError(f"{folder} holds {len(found)} subsets", hint=f"name one of them: {names}")
    if not found:
        raise DataError(f"{folder} holds no run: all_results.json is missing, and so are selections/", hint=_OTHER_RUN)
    return found[0]


def _steps(folder: Path, pattern: str) -> list[tuple[int, Path]]:
    """The files of a folder by the step in their names."""
    found = [(_step(file), file) for file in folder.glob(pattern)]
    return sorted((step, file) for step, file in found if step is not None)


def _step(path: Path) -> int | None:
    """The number in ``step-N.parquet``; None for files of another name that lie there."""
    number = path.stem.removeprefix("step-")
    return int(number) if number.isascii() and number.isdecimal() else None


def _answers(folder: Path) -> Iterator[tuple[int, Answers]]:
    for step, file in _steps(folder, "step-*.jsonl"):
        found = read_answers(file)
        if found.rewards:
            yield step, found


def _read_object(path: Path) -> Mapping[str, Any]:
    with foreign(DataError, f"cannot read {path}", JSON):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}, expected an object", hint=_OTHER_RUN)
    return value


def _log(path: Path) -> Iterator[Mapping[str, Any]]:
    """Entries of a log with a step; a line that cannot be read is left out: the last one may be half written."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and "current_steps" in numbers(entry):
                yield entry


def _read_selection(step: int | None, path: Path) -> SelectionFile:
    """A selection; its step stands in its facts where the file's name has none."""
    with foreign(DataError, f"cannot read {path}", arrow_errors()):
        schema = pq.read_schema(path)
    missing = [name for name in ("score", "chosen") if name not in schema.names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}", hint=_OTHER_RUN)
    with foreign(DataError, f"the metadata of {path} is damaged", JSON):
        facts = json.loads((schema.metadata or {}).get(b"dataflex", b"{}"))
    facts = facts if isinstance(facts, dict) else {}
    with foreign(DataError, f"a column of {path} has another type", (*arrow_errors(), ValueError, TypeError)):
        table = pq.read_table(path, columns=["score", "chosen"])
        scores = table.column("score").to_numpy(zero_copy_only=False).astype(np.float64)
        chosen = table.column("chosen").to_numpy(zero_copy_only=False).astype(np.bool_)
    if step is None:
        step = int(numbers(facts).get("step", 0))
    return SelectionFile(path, step, facts, frozenset(schema.names), scores, chosen)


def entries_with(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the entries of a log that have a number under ``key``."""
    known = [(float(entry["current_steps"]), numbers(entry)[key]) for entry in history if key in numbers(entry)]
    return [step for step, _ in known], [value for _, value in known]
