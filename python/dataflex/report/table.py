"""A table of values that knows how each of its columns is written, and what each of them means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

Kind = Literal["text", "count", "share", "percent", "lift", "score", "ratio", "seconds", "loss", "weight"]
NONE = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Attributes:
        name: Its head.
        kind: How its values are written; ``text`` stands left, numbers right.
        meaning: What its values are, where the head does not say it.
    """

    name: str
    kind: Kind = "text"
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class Sheet:
    """One table.

    Attributes:
        key: Its name for programs.
        title: What it shows.
        columns: Its columns.
        rows: Values, None where there is none.
        note: What else there is to say.
        marked: Rows that stand out.
    """

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[Any, ...]]
    note: str = ""
    marked: frozenset[int] = frozenset()

    @property
    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text, not escaped for any target yet."""
        kinds = [column.kind for column in self.columns]
        return [tuple(map(cell_text, row, kinds)) for row in self.rows]

    @property
    def meanings(self) -> list[tuple[str, str]]:
        """Columns whose head does not say what they are, and what they are."""
        return [(column.name, column.meaning) for column in self.columns if column.meaning]

    def to_arrow(self) -> pa.Table:
        """The values: texts as strings, counts as int64, other numbers as float64; null where there is none."""
        arrays = {}
        for place, column in enumerate(self.columns):
            values = [row[place] for row in self.rows]
            kind = {"text": pa.string(), "count": pa.int64()}.get(column.kind, pa.float64())
            arrays[column.name] = pa.array([_plain(value, column.kind) for value in values], kind)
        return pa.table(arrays)

    def to_json(self) -> dict[str, Any]:
        """Title, columns with their meanings, rows; a number that is not finite is null."""
        columns = [{"name": column.name, "kind": column.kind, "meaning": column.meaning} for column in self.columns]
        rows = [
            [_plain(value, column.kind) for value, column in zip(row, self.columns, strict=True)] for row in self.rows
        ]
        return {"title": self.title, "columns": columns, "rows": rows, "note": self.note}


def cell_text(value: Any, kind: Kind) -> str:
    """A value as its column writes it."""
    if value is None:
        return NONE
    match kind:
        case "count":
            return f"{value:,.0f}"
        case "share":
            return f"{value:.1%}"
        case "percent":
            return f"{value:.0%}"
        case "lift":
            return f"{value:.2f}x"
        case "score":
            return score_text(value)
        case "ratio":
            return f"{value:.2f}"
        case "seconds":
            return f"{value:,.1f}"
        case "loss":
            return f"{value:.4f}"
        case "weight":
            return f"{value:.3f}"
    return str(value)


def score_text(value: float) -> str:
    """A score with its sign and four digits."""
    return f"{value:+.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:+.4g}"


def share_text(value: float) -> str:
    """A share in whole percent, in tenths where it is less than one of them: a share that is there is not 0 %."""
    return f"{value:.0%}" if value == 0 or value >= 0.01 else f"{value:.1%}"


def time_text(seconds: float) -> str:
    """A duration in the unit that a person would take."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _plain(value: Any, kind: Kind) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind == "text":
        return str(value).encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair has no UTF-8
    return int(value) if kind == "count" else float(value)
