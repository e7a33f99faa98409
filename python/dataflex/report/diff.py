"""Two runs or selections side by side: rows in common, order in common, what only one chose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import DataError
from dataflex.report.compare import overlap, rank_correlation
from dataflex.report.groups import NOTHING
from dataflex.report.read import RunReport, SelectionFile
from dataflex.report.table import Column, Sheet
from dataflex.utils.facts import numbers

MOST_ROWS = 20
"""Rows that a table of differences lists."""
GROUPS = ("task", "source", "words", "script")
RESULTS = ("eval_loss", "best_metric", "train_loss", "steps", "train_runtime")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two selections, cut to the candidates that both have; m of them.

    Attributes:
        one: The first selection.
        other: The second.
        places: ``(m,)`` int64 each: where the common candidates stand in either.
    """

    one: SelectionFile
    other: SelectionFile
    places: tuple[NDArray[np.int64], NDArray[np.int64]]

    @property
    def chosen(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """``(m,)`` bool each: which were chosen."""
        return self.one.chosen[self.places[0]], self.other.chosen[self.places[1]]

    @property
    def scores(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``(m,)`` float64 each."""
        return self.one.scores[self.places[0]], self.other.scores[self.places[1]]


def differences(one: RunReport, other: RunReport) -> list[Sheet]:
    """What two runs or selections have in common and what not, as tables.

    Args:
        one: The first.
        other: The second.

    Raises:
        DataError: One has no selection, or they share no candidate.
    """
    pairs = _pairs(one, other)
    tables = [_selections(pairs, one, other), *_groups(pairs[-1]), _rows(pairs[-1]), _results(one, other)]
    return [sheet for sheet in tables if sheet.rows]


def _pairs(one: RunReport, other: RunReport) -> list[Pair]:
    """The selections in their order, and the last of both."""
    for report in (one, other):
        if not report.selections:
            raise DataError(f"{report.name} has no selection to compare")
    places = common_rows(one.selections[-1], other.selections[-1])
    if not len(places[0]):
        raise DataError(f"{one.name} and {other.name} have no candidate in common")
    pairs = list(zip(one.selections, other.selections, strict=False))
    if len(one.selections) != len(other.selections):
        pairs.append((one.selections[-1], other.selections[-1]))
    return [Pair(first, second, places) for first, second in pairs]


def common_rows(one: SelectionFile, other: SelectionFile) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the candidates that both have: the same source, row and id."""
    places = {key: place for place, key in enumerate(_keys(one))}
    found = [(places[key], place) for place, key in enumerate(_keys(other)) if key in places]
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _keys(selection: SelectionFile) -> Iterator[tuple[str | None, int, str | None]]:
    nothing: list[str | None] = [None] * len(selection.chosen)
    sources, ids = selection.texts("source") or nothing, selection.texts("id") or nothing
    return zip(sources, selection.rows(), ids, strict=True)


def _selections(pairs: Sequence[Pair], one: RunReport, other: RunReport) -> Sheet:
    rows = []
    for pair in pairs:
        first, second = pair.chosen
        both = int((first & second).sum())
        only = int(first.sum()) - both, int(second.sum()) - both
        correlation = rank_correlation(*pair.scores)
        rows.append((pair.one.step, pair.other.step, both, *only, overlap(second, first), correlation))
    columns = (
        Column("step of the first", "count"),
        Column("step of the second", "count"),
        Column("both", "count", "rows that both chose"),
        Column("only the first", "count"),
        Column("only the second", "count"),
        Column("overlap", "share", "share of the first's rows that the second chose too"),
        Column("order", "ratio", "Spearman's rank correlation of the scores: 1 the same order, 0 no relation"),
    )
    common, sizes = len(pairs[-1].places[0]), (len(pairs[-1].one.chosen), len(pairs[-1].other.chosen))
    note = f"{common:,} candidates are in both"
    note += f", of {sizes[0]:,} and {sizes[1]:,}." if max(sizes) > common else "."
    names = (f"{report.output_dir}: {report.selections[-1].selector}" for report in (one, other))
    title = ", and ".join(names)
    return Sheet("selections", title, columns, rows, note)


def _groups(pair: Pair) -> Iterator[Sheet]:
    """By what the rows have: how many only one chose."""
    for what in GROUPS:
        values = pair.one.texts(what)
        names = [NOTHING if values[place] is None else str(values[place]) for place in pair.places[0]] if values else []
        if len(set(names)) < 2:
            continue
        first, second = pair.chosen
        groups = list(dict.fromkeys(names))
        order = {name: number for number, name in enumerate(groups)}
        number = np.array([order[name] for name in names])
        kinds = (first & second, first & ~second, ~first & second)
        counts = [np.bincount(number[which], minlength=len(groups)).tolist() for which in kinds]
        rows = [(sum(found), name, *found) for name, *found in zip(groups, *counts, strict=True)]
        rows = sorted((row for row in rows if row[0]), key=lambda row: -row[0])[:MOST_ROWS]
        columns = (Column(what), *(Column(head, "count") for head in ("both", "only the first", "only the second")))
        yield Sheet(f"by {what}", f"last selections by {what}", columns, [row[1:] for row in rows])
        return


def _rows(pair: Pair) -> Sheet:
    """The rows that one chose and the other not, those first that the one was surest of."""
    ids, rows = pair.one.texts("id"), []
    first, second = pair.chosen
    only = (first & ~second, second & ~first)
    for who, which, scores in zip(("the first", "the second"), only, pair.scores, strict=True):
        found = np.flatnonzero(which)
        ranked = found[np.argsort(-np.nan_to_num(scores[found], nan=-np.inf), kind="stable")]
        for place in ranked[: MOST_ROWS // 2].tolist():
            values = [_finite(own[place]) for own in pair.scores]
            row_id = ids[int(pair.places[0][place])] if ids else None
            rows.append((who, row_id or str(int(pair.places[0][place])), *values))
    columns = (
        Column("only"),
        Column("id"),
        Column("score in the first", "score"),
        Column("score in the second", "score"),
    )
    return Sheet(
        "rows", "rows that one of the last selections chose", columns, rows, f"At most {MOST_ROWS // 2} of each."
    )


def _results(one: RunReport, other: RunReport) -> Sheet:
    first, second = numbers(one.results), numbers(other.results)
    rows = [(key, first.get(key), second.get(key)) for key in RESULTS if key in first or key in second]
    columns = (Column("result"), Column("the first", "loss"), Column("the second", "loss"))
    return Sheet("results", "results", columns, rows)


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
