"""How objects show themselves at the end of a notebook cell: one line, and a table of a few rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dataflex.utils.shown import shown

SHOWN_ROWS = 5
CELL = 120
"""Longest text in a cell, in characters."""


def score_text(score: float) -> str:
    """A score with four digits, nan (there is none) as a dash."""
    return "-" if math.isnan(score) else f"{score:.4g}"


def html_table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]], total: int) -> str:
    """A title and a table, all of it as text.

    Args:
        title: What the object is.
        head: Names of the columns.
        rows: The first rows.
        total: How many rows there are in all.
    """
    lines = [f"<p>{shown(title, target='html')}</p>", "<table>", _row("th", head)]
    lines += [_row("td", row) for row in rows]
    lines.append("</table>")
    if total > len(rows):
        lines.append(f"<p>... {total - len(rows):,} more</p>")
    return "\n".join(lines)


def _row(tag: str, cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{shown(cell, CELL, target='html')}</{tag}>" for cell in cells) + "</tr>"
