"""The report in Python: the same numbers as tables, the same page in a notebook."""

from __future__ import annotations

import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dataflex.errors import DataError
from dataflex.report.diff import differences
from dataflex.report.page import page_html, write_page
from dataflex.report.read import RunReport, read_report
from dataflex.report.sections import Pages, lay_out
from dataflex.utils.facts import numbers
from dataflex.utils.home import home_path
from dataflex.utils.shown import listed

if TYPE_CHECKING:
    from pandas import DataFrame

NOTEBOOK_HEIGHT = 640
"""Pixels of the page in a notebook; it scrolls."""


class Report:
    """What a run, finished or not, or a selection without training did.

    Args:
        place: The ``output_dir`` of a run; or the subset of ``dataflex select``, or its folder.

    Raises:
        DataError: There is nothing to report on, or a file is damaged.

    Attributes:
        summary: What was chosen, whether to trust it, what it cost and what to change.
        tables: Every table by its name, as ``pyarrow.Table``: texts, counts as int64, other numbers as float64.

    Example:
        >>> report = Report("output/quickstart")  # doctest: +SKIP
        >>> report.to_pandas("by task").head(1)["task"].item()  # doctest: +SKIP
        'capitals'
    """

    def __init__(self, place: str | Path) -> None:
        self.read: RunReport = read_report(home_path(place))
        self._pages: Pages = lay_out(self.read)
        self.summary: dict[str, str] = dict(self._pages.summary.lines())
        self.tables: dict[str, pa.Table] = {sheet.key: sheet.to_arrow() for sheet in self._pages.sheets}

    def to_pandas(self, table: str) -> DataFrame:
        """One of the tables.

        Args:
            table: Its name.

        Raises:
            DataError: There is none of that name.
        """
        if table not in self.tables:
            raise DataError(f"the report has no table {table!r}", hint=f"it has {listed(self.tables, most=30)}")
        return self.tables[table].to_pandas()

    def to_json(self) -> dict[str, Any]:
        """Summary and tables, each with the meaning of its columns; what ``dataflex report --json`` prints."""
        return {
            "name": self.read.name,
            "finished": bool(self.read.results) or not self.read.trained,
            "steps": numbers(self.read.results).get("steps"),
            "summary": self.summary,
            "changes": self._pages.summary.changes,
            "tables": {sheet.key: sheet.to_json() for sheet in self._pages.sheets},
        }

    def diff(self, other: Report) -> dict[str, pa.Table]:
        """What another run or selection of the same data chose otherwise; what ``dataflex diff`` prints.

        Args:
            other: The other report.

        Returns:
            ``selections`` (rows in common and rank correlation), ``rows`` that only one chose, their groups (``by
            task``, ...) and ``results``, as far as there are some.

        Raises:
            DataError: One has no selection, or they share no candidate.
        """
        return {sheet.key: sheet.to_arrow() for sheet in differences(self.read, other.read)}

    def write(self) -> Path:
        """Write the page beside what it is of; returns where."""
        write_page(self.read, self._pages)
        return self.read.page

    def __repr__(self) -> str:
        return f"Report({self.read.name}: {self._pages.summary.chosen})"

    def _repr_html_(self) -> str:
        page = html.escape(page_html(self.read, self._pages))
        style = f"width: 100%; height: {NOTEBOOK_HEIGHT}px; border: 0"
        return f'<iframe sandbox="" title="dataflex report" style="{style}" srcdoc="{page}"></iframe>'
