"""Why a row has the score that it has, as far as the files of a run tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataflex.errors import DataError
from dataflex.report.compare import ranks
from dataflex.report.read import RunReport, SelectionFile
from dataflex.report.table import Column, Sheet
from dataflex.utils.shown import quoted


@dataclass(frozen=True, slots=True)
class RowStory:
    """One row.

    Attributes:
        place: Its position among the candidates.
        id: Its id.
        sheets: Its tables by name: ``scores``; where they are known ``targets`` and ``neighbours``.
        texts: Its ``prompt`` and ``answer``, where they are known.
        unknown: What could not be said, and why.
    """

    place: int
    id: str
    sheets: dict[str, Sheet]
    texts: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it."""
        tables = {name: sheet.to_json() for name, sheet in self.sheets.items()}
        return {"id": self.id, "place": self.place, **self.texts, "tables": tables, "unknown": self.unknown}

    @property
    def tables(self) -> dict[str, pa.Table]:
        """The tables by name."""
        return {name: sheet.to_arrow() for name, sheet in self.sheets.items()}


def find_rows(selection: SelectionFile, names: Sequence[str], top: int = 0, lowest: int = 0) -> list[int]:
    """Places of rows by their ids, of those chosen first, and of those of the lowest scores.

    Args:
        selection: The selection.
        names: Ids; a number that is no id is a position among the candidates.
        top: How many of the best of the chosen.
        lowest: How many of the lowest scores.

    Raises:
        DataError: There is no such row, or several have that id.
    """
    ids = selection.texts("id")
    found = [_place(selection, ids, name) for name in names]
    if top:
        order = {rank: place for place, rank in enumerate(selection.ranks()) if rank is not None}
        found += [order[rank] for rank in sorted(order)[:top]]
    if lowest:
        usable = np.flatnonzero(np.isfinite(selection.scores))
        found += usable[np.argsort(selection.scores[usable], kind="stable")][:lowest].tolist()
    return list(dict.fromkeys(found))


def _place(selection: SelectionFile, ids: Sequence[str | None], name: str) -> int:
    places = [place for place, row_id in enumerate(ids) if row_id == name]
    if len(places) == 1:
        return places[0]
    n = len(selection.chosen)
    if places:
        some = ", ".join(map(str, places[:5]))
        raise DataError(f"{len(places)} rows have the id {quoted(name)}", hint=f"name a position instead: {some}")
    if name.isascii() and name.isdecimal() and int(name) < n:
        return int(name)
    raise DataError(f"no row has the id {quoted(name)}", hint=f"an id of {selection.path}, or a position below {n:,}")


def row_stories(report: RunReport, places: Sequence[int]) -> list[RowStory]:
    """What the files tell of some candidates of the last selection.

    Args:
        report: What was read; all selections must be of the same candidates.
        places: Positions among the candidates.
    """
    ids = report.selections[-1].texts("id")
    ordered = [(selection, _ranks(selection), selection.ranks()) for selection in report.selections]
    stories = []
    for place in places:
        rows = []
        for selection, order, chosen in ordered:
            score, rank = selection.scores[place], order[place]
            known = np.isfinite(score)
            best = chosen[place]
            rows.append(
                (
                    selection.step,
                    float(score) if known else None,
                    int(rank) if known else None,
                    float(np.mean(selection.scores[np.isfinite(selection.scores)] <= score)) if known else None,
                    "no" if best is None else f"as number {best + 1:,}",
                )
            )
        name = (ids[place] if ids else None) or str(place)
        stories.append(RowStory(place, name, {"scores": _scores(name, rows)}, _texts(report, name)))
    return stories


def _scores(name: str, rows: Sequence[tuple[object, ...]]) -> Sheet:
    columns = (
        Column("step", "count"),
        Column("score", "score"),
        Column("rank", "count", "1 is the highest score"),
        Column("at or below", "share", "share of the rows that have a score of at most this"),
        Column("chosen"),
    )
    return Sheet("scores", f"{name}: its scores", columns, rows)


def _ranks(selection: SelectionFile) -> NDArray[np.float64]:
    """``(n,)`` float64: 1 for the highest score; nan without one."""
    found = np.full(len(selection.scores), np.nan)
    finite = np.isfinite(selection.scores)
    found[finite] = np.ceil(ranks(-selection.scores[finite])) + 1
    return found


def _texts(report: RunReport, name: str) -> dict[str, str]:
    """The beginnings of a row's texts, where a selection has kept them."""
    for selection in report.selections:
        for row in selection.excerpts:
            if str(row.get("id")) == name:
                return {key: str(row.get(key) or "") for key in ("prompt", "answer")}
    return {}
