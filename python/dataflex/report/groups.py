"""Candidates and chosen rows by what is known of them: task, source, script, words, length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dataflex.report.read import SelectionFile
from dataflex.utils.groups import GroupRow, by_length, group_rows, length_names

NOTHING = "(none)"
LENGTH = "tokens"


@dataclass(frozen=True, slots=True)
class Grouping:
    """One way to group the rows.

    Attributes:
        what: What the groups are, as the head of a table says it.
        known_by: Where the groups come from.
        rows: The groups, most selected first; lengths from the shortest.
        rounds: Selections that were counted together.
    """

    what: str
    known_by: str
    rows: Sequence[GroupRow]
    rounds: int

    def used(self, row: GroupRow) -> float:
        """Of a group's rows the share that a selection chose, the mean over the selections."""
        return row.selected / (row.candidates * self.rounds)


_KNOWN_BY = {
    "task": "the task column of the data",
    "source": "the data set that a row is from",
    "script": "the script that most letters of a row are in",
    "words": "clusters of rows with similar words, named by the words that set them apart",
    LENGTH: "the length of a row in tokens",
}


def groupings(selections: Sequence[SelectionFile]) -> Iterator[Grouping]:
    """All groupings that tell rows apart, all selections counted together; the most telling one first.

    A task where a row has one; else by source, script or words, where there is more than one; lengths always.
    """
    first = selections[0]
    draws = [(selection.chosen, selection.scores) for selection in selections]
    for what in ("task", "source", "words", "script"):
        values = first.texts(what)
        names = [NOTHING if value is None else str(value) for value in values]
        known = any(value is not None for value in values)
        if known and (what == "task" or len(set(names)) > 1):
            yield Grouping(what, _KNOWN_BY[what], group_rows(names, draws), len(draws))
    tokens = first.tokens()
    if len(tokens):
        rows = by_length(group_rows(length_names(tokens.tolist()), draws))
        yield Grouping(LENGTH, _KNOWN_BY[LENGTH], rows, len(draws))
