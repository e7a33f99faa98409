"""Candidates at a budget: a costly selector looks at some of the rows only.

A gradient costs a forward and a backward pass a row. ``candidates`` draws that many rows, anew in each round, by (seed
of the run, round); ``prefilter`` lets a cheap selector choose among these, and what it keeps is all that the costly one
sees. The other rows have no score: NaN in :class:`~dataflex.selectors.base.Selection`, null in ``selections/``, which
is not the -inf of a row that was looked at and cannot be used.

What is left is a dataset of its own for everything that follows. Features and scores on disk carry its fingerprint, so
a round that was killed draws the same rows, finds what is stored for them, and never takes another round's for it.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from dataflex.config.values import count_or_share
from dataflex.errors import ConfigError, PluginError, SelectionError
from dataflex.plugins.nested import component_problems
from dataflex.plugins.registry import Kind, registry
from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig
from dataflex.selectors.outcome import check_agreement, check_selection
from dataflex.selectors.plan import Plan
from dataflex.types import Sample
from dataflex.utils.facts import numbers
from dataflex.utils.messages import Path as KeyPath
from dataflex.utils.messages import shown
from dataflex.utils.progress import Stopwatch

logger = logging.getLogger(__name__)

PREFILTER = "prefilter"
"""Key of the cheap selector, folder of what it leaves on disk, and word before its parts in reports."""
DRAW, STAND_IN = 0xD4A3, 0x57A2
"""Streams of their own, so that neither follows the draws of a selector with the same seed and round."""


def _amount(value: Any) -> Any:
    """``all``, a number of rows (int) or a share of them (float up to 1, or text as ``25%``)."""
    wrong = ValueError(f"expected all, a number of rows or a share of them (0.25, 25%), got {shown(value)}")
    if isinstance(value, str) and value != "all":
        try:
            value = count_or_share(value)
        except ValueError:
            raise wrong from None
    if value == "all":
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise wrong
    if isinstance(value, float) and value > 1:
        if not value.is_integer():
            raise wrong
        return int(value)
    return value


def _prefilter(value: Any) -> Any:
    if value is None or isinstance(value, Mapping | Prefilter):
        return value
    raise ValueError(f"expected {{name: rds, keep: 0.25}} with the parameters in params, got {shown(value)}")


class Prefilter(BaseModel):
    """A selector that goes first, and how much it leaves."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    name: str = Field(description="registered selector")
    keep: float = Field(gt=0, lt=1, description="share of the candidates that it keeps")
    params: dict[str, Any] = Field(default_factory=dict, description="its parameters")


class CandidateConfig(SelectorConfig):
    """Parameters of every selector that need not look at all rows."""

    nested: ClassVar[Mapping[str, Kind]] = {PREFILTER: "selector"}

    candidates: Annotated[Literal["all"] | int | float, BeforeValidator(_amount)] = Field(
        "all", description="rows that a round looks at, drawn anew by seed and round: all, a number, or a share (0.25)"
    )
    prefilter: Annotated[Prefilter | None, BeforeValidator(_prefilter)] = Field(
        None,
        description="a cheap selector that goes first: {name: rds, keep: 0.25, params: {...}} leaves a quarter of them",
    )

    @classmethod
    def find_nested_problems(cls, params: Mapping[str, Any]) -> list[tuple[KeyPath, str]]:
        """Problems of the prefilter's own parameters, and of one that cannot go first here."""
        found = [*super().find_nested_problems(params), *component_problems(params, PREFILTER, "selector")]
        spec = params.get(PREFILTER)
        if found or not isinstance(spec, Mapping):
            return found
        return [((PREFILTER, "name"), text) for text in cls._unfit(spec, params)]

    @classmethod
    def _unfit(cls, spec: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
        """Why a prefilter of valid parameters cannot go first here."""
        try:
            selector = registry().get("selector", str(spec.get("name")))
        except PluginError:
            return []
        problems = []
        if selector.Config is cls:
            problems.append(f"{selector.name} cannot go before itself")
        if selector.needs_same_candidates and params.get("candidates", "all") not in ("all", 1.0):
            problems.append(f"{selector.name} compares rounds row by row and needs candidates: all")
        inner = spec.get("params") or {}
        if inner.get("cache_dir") is not None and str(inner["cache_dir"]) == str(params.get("cache_dir")):
            problems.append(f"{selector.name} needs a cache_dir of its own, got {shown(str(inner['cache_dir']))} again")
        if inner.get("replacement") is True:
            problems.append("replacement: true may choose a row twice; a prefilter keeps each once")
        return [f"prefilter.name: {text}" for text in problems]

    def find_idle(self) -> list[tuple[KeyPath, str]]:
        """Parameters of the prefilter that have no effect because of its others."""
        found = super().find_idle()
        if self.prefilter is not None:
            own = self._prefilter_config(self.prefilter)
            found += [((PREFILTER, "params", *path), text) for path, text in own.find_idle()]
        return found

    @model_validator(mode="after")
    def _prefilter_fits(self) -> CandidateConfig:
        """Validate the prefilter's parameters; they stay as that leaves them: paths as paths, defaults unwritten."""
        if self.prefilter is not None:
            if problems := self._unfit(self.prefilter.model_dump(), dict(self)):
                raise ConfigError(problems)
            own = self._prefilter_config(self.prefilter)
            self.prefilter.params = {name: getattr(own, name) for name in self.prefilter.params}
        return self

    @staticmethod
    def _prefilter_config(prefilter: Prefilter) -> SelectorConfig:
        config: SelectorConfig = registry().get("selector", prefilter.name).from_params(prefilter.params).config
        return config


CandidateConfigT = TypeVar("CandidateConfigT", bound=CandidateConfig)


@dataclass(frozen=True, slots=True)
class Narrowed:
    """The rows that a round looks at.

    Attributes:
        context: The round with these rows, k of them, for its candidates.
        total: n: rows that there are.
        rows: ``(k,)`` int64 their positions among all, rising; None: all.
        report: What the selection's report says about it.
        seconds: Of each phase of the prefilter.
        left_out: What the prefilter could not use, counted.
    """

    context: SelectionContext
    total: int
    rows: NDArray[np.int64] | None = None
    report: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] | None = None
    left_out: Mapping[str, int] | None = None

    def widened(self, selection: Selection) -> Selection:
        """A selection among these rows as one among all: the others' scores are NaN."""
        if self.rows is None:
            return selection
        scores = None
        if selection.scores is not None:
            scores = np.full(self.total, np.nan)
            scores[self.rows] = selection.scores
        own = selection.report
        candidates = {**own.get("candidates", {}), "total": self.total, "looked_at": len(self.rows)}
        report = {
            **own,
            "candidates": candidates,
            **(self.report or {}),
            "seconds": {**(self.seconds or {}), **own.get("seconds", {})},
            "left_out": {**(self.left_out or {}), **own.get("left_out", {})},
        }
        return replace(selection, indices=self.rows[selection.indices], scores=scores, report=report)


class CandidateSelector(Selector[CandidateConfigT]):
    """A selector that draws and filters its candidates first; a subclass chooses among those that are left."""

    @abstractmethod
    def select_among(self, context: SelectionContext) -> Selection:
        """Select from ``context.train_dataset``, which holds the rows to look at; otherwise as :meth:`select`."""

    @abstractmethod
    def work_dir(self, context: SelectionContext) -> Path:
        """Folder of everything that rounds leave behind."""

    @cached_property
    def prefilter(self) -> Selector[Any] | None:
        """The selector that goes first, built on first use."""
        wanted = self.config.prefilter
        if wanted is None:
            return None
        built: Selector[Any] = registry().get("selector", wanted.name).from_params(wanted.params)
        return built

    @property
    def reads_text(self) -> tuple[str, ...]:
        """What the prefilter reads."""
        return () if self.prefilter is None else self.prefilter.reads_text

    def check_data(self, samples: Sequence[Sample]) -> None:
        """See that the candidates fit what the prefilter has on disk."""
        if self.prefilter is not None:
            self.prefilter.check_data(samples)

    def check(self, context: SelectionContext) -> None:
        """See that enough rows are looked at, and let the prefilter check itself.

        Raises:
            SelectionError: Fewer rows are looked at than are to be selected, or the prefilter cannot go first.
        """
        context = replace(context, round=max(context.round, 1))  # before training there was none
        drawn = self._drawn(context)
        if self.prefilter is not None:
            if self.prefilter.needs_eval_dataset and not context.eval_dataset:
                raise SelectionError(
                    f"prefilter {self.prefilter.name!r} needs an evaluation set", hint="set eval_dataset"
                )
            self.prefilter.check(self._first(context, drawn))

    def select(self, context: SelectionContext) -> Selection:
        """Narrow the candidates down, and select among those that are left.

        Raises:
            SelectionError: Fewer rows are left than are to be selected; and whatever the selectors raise.
        """
        left = self.narrowed(context)
        return left.widened(self.select_among(left.context))

    def state_dict(self) -> dict[str, Any]:
        """The prefilter's state."""
        return {} if self.prefilter is None else {PREFILTER: self.prefilter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the prefilter's state."""
        if self.prefilter is not None and PREFILTER in state:
            self.prefilter.load_state_dict(state[PREFILTER])

    def close(self) -> None:
        """Free what the prefilter holds."""
        if self.__dict__.get(PREFILTER) is not None:
            self.__dict__[PREFILTER].close()

    def left(self, context: SelectionContext) -> int:
        """How many rows a round looks at.

        Raises:
            SelectionError: They are fewer than are to be selected.
        """
        drawn = self._drawn(context)
        if self.config.prefilter is not None:
            return self._first(context, drawn).num_samples
        return len(context.train_dataset) if drawn is None else len(drawn)

    def narrowed(self, context: SelectionContext) -> Narrowed:
        """The rows that this round looks at: drawn, then filtered.

        Raises:
            SelectionError: They are fewer than are to be selected, or the prefilter's choice is wrong.
        """
        total, rows = len(context.train_dataset), self._drawn(context)
        report: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        left_out: dict[str, int] = {}
        if self.prefilter is not None:
            first, watch = self._first(context, rows), Stopwatch()
            with watch.phase(PREFILTER):
                found = self.prefilter.select(first)
            _check_choice(found, first)
            rows = np.sort(found.indices if rows is None else rows[found.indices])
            report = {PREFILTER: _facts(found, first)}
            seconds = _seconds(found, watch.seconds[PREFILTER])
            left_out = {f"{PREFILTER}: {name}": int(count) for name, count in _mapping(found, "left_out").items()}
        if rows is None:
            return Narrowed(context, total)
        if context.ranks.is_main:
            logger.info("%s", self._looks_at(len(rows), total))
        dataset = context.train_dataset.select(rows.tolist())
        return Narrowed(replace(context, train_dataset=dataset), total, rows, report, seconds, left_out)

    def planned_among(self, context: SelectionContext) -> tuple[SelectionContext, Plan]:
        """A context with as many rows as are going to be left, and the prefilter's part of the plan.

        Which rows the prefilter leaves only it can tell; some that are drawn evenly stand in for them.
        """
        rows, total = self._drawn(context), len(context.train_dataset)
        if self.prefilter is None:
            left = context if rows is None else _among(context, rows)
            return left, Plan(notes=[] if rows is None else [self._looks_at(len(rows), total)])
        first = self._first(context, rows)
        own = self.prefilter.plan(first)
        parts = [replace(part, name=f"{PREFILTER}: {part.name}") for part in own.parts]
        counts = {f"{PREFILTER}: {name}": count for name, count in own.counts.items()}
        kept = _draw(len(first.train_dataset), first.num_samples, (context.seed, context.round, STAND_IN))
        notes = [*(f"{PREFILTER}: {note}" for note in own.notes), self._looks_at(len(kept), total)]
        return _among(context, kept if rows is None else rows[kept]), Plan(parts, counts, notes)

    def _drawn(self, context: SelectionContext) -> NDArray[np.int64] | None:
        """Positions of the drawn rows, rising; None: all are looked at.

        Raises:
            SelectionError: They are fewer than are to be selected.
        """
        wanted, total = self.config.candidates, len(context.train_dataset)
        if wanted == "all" or (isinstance(wanted, float) and wanted == 1):
            return None
        count = wanted if isinstance(wanted, int) else _share(wanted, total)
        if count > total:
            raise SelectionError(f"candidates: {count} rows are to be looked at, there are {total}", hint="all")
        if count < context.num_samples:
            raise SelectionError(
                f"candidates: {wanted} looks at {count} of {total} rows, and {context.num_samples} are to be selected",
                hint=f"candidates: {context.num_samples} or more",
            )
        return _draw(total, count, (context.seed, context.round, DRAW))

    def _first(self, context: SelectionContext, rows: NDArray[np.int64] | None) -> SelectionContext:
        """The prefilter's context.

        Raises:
            SelectionError: It would leave fewer rows than are to be selected.
        """
        assert self.config.prefilter is not None
        among = context if rows is None else _among(context, rows)
        total, keep = len(among.train_dataset), self.config.prefilter.keep
        kept = _share(keep, total)
        if kept < context.num_samples:
            least = math.ceil(context.num_samples / total * 1000) / 1000
            text = f"prefilter: keep: {keep:g} leaves {kept} of {total} rows"
            raise SelectionError(
                f"{text}, and {context.num_samples} are to be selected",
                hint=f"keep: {least:g} or more" if least < 1 else "more candidates, or no prefilter",
            )
        folder = self.work_dir(context) / PREFILTER
        return replace(among, num_samples=kept, total_samples=kept * context.num_rounds, output_dir=folder)

    def _looks_at(self, count: int, total: int) -> str:
        """How many rows are looked at, and how they were chosen."""
        drawn = "" if self.config.candidates == "all" else "drawn by seed and round"
        wanted = self.config.prefilter
        filtered = "" if wanted is None else f"{wanted.name} keeps {wanted.keep:.3g} of them"
        how = ", ".join(filter(None, [drawn, filtered]))
        return f"{self.name} looks at {count:,} of {total:,} rows: {how}"


def _among(context: SelectionContext, rows: NDArray[np.int64]) -> SelectionContext:
    return replace(context, train_dataset=context.train_dataset.select(rows.tolist()))


def _share(share: float, total: int) -> int:
    """So many of ``total`` rows, a half rounded up, at least one."""
    return max(1, math.floor(share * total + 0.5))


def _draw(total: int, count: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """``count`` of ``total`` positions, rising."""
    return np.sort(np.random.default_rng(seed).choice(total, size=count, replace=False)).astype(np.int64)


def _check_choice(found: Selection, context: SelectionContext) -> None:
    """Raise SelectionError unless the prefilter chose as many different rows as it was asked for, on every rank."""
    check_selection(replace(found, repeats=False), len(context.train_dataset), context.num_samples)
    check_agreement(found, context.ranks)


def _facts(found: Selection, context: SelectionContext) -> dict[str, Any]:
    """What the report says about the prefilter."""
    own = {key: value for key, value in found.report.items() if key not in ("seconds", "left_out")}
    return {"selector": found.selector, "of": len(context.train_dataset), "kept": context.num_samples, "report": own}


def _seconds(found: Selection, total: float) -> dict[str, float]:
    """The prefilter's phases, and what it took beside them."""
    phases = numbers(_mapping(found, "seconds"))
    named = {f"{PREFILTER}: {name}": value for name, value in phases.items()}
    return {**named, f"{PREFILTER}: other" if named else PREFILTER: max(total - sum(phases.values()), 0.0)}


def _mapping(found: Selection, key: str) -> Mapping[str, Any]:
    value = found.report.get(key)
    return value if isinstance(value, Mapping) else {}
