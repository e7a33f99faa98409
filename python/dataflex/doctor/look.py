"""Rows of a run as the model will see them: some of a dataset's, tokenised, with the mask of what is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from dataflex.data.encoding import Encoded
from dataflex.data.notes import counted, sentences
from dataflex.data.templates import ChatTemplate
from dataflex.types import Sample
from dataflex.utils.shown import listed

ROWS = 1000
"""Rows that are looked at where nothing else is said: seconds of work for any data."""


@dataclass(frozen=True, slots=True)
class Look:
    """Some rows of a dataset, tokenised.

    Attributes:
        total: Rows of the dataset.
        samples: r of them, spread evenly.
        encoded: Their tokens and labels.
        cutoff_len: The length that they were cut to.
    """

    total: int
    samples: list[Sample]
    encoded: list[Encoded]
    cutoff_len: int

    @property
    def truncated(self) -> list[int]:
        """Positions of the rows that lost tokens."""
        return [place for place, row in enumerate(self.encoded) if row.truncated]

    @property
    def unlabelled(self) -> list[int]:
        """Positions of the rows without a token to learn: training leaves them out."""
        return [place for place, row in enumerate(self.encoded) if learnt_tokens(row) == 0]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [len(row.ids) for row in self.encoded]

    def lines(self) -> list[str]:
        """The counts in words, and what stands out."""
        return [*self.counts(), *self.warnings()]

    def counts(self) -> list[str]:
        """The counts in words."""
        rows, lengths = len(self.samples), self.lengths
        looked = "all looked at" if rows == self.total else f"{rows:,} of them looked at"
        share = sum(map(learnt_tokens, self.encoded)) / max(sum(lengths), 1)
        return [
            f"{self.total:,} rows, {looked}",
            f"tokens a row: {min(lengths)} to {max(lengths)}, median {median(lengths):g}; {share:.0%} of them learnt",
            f"cut to {self.cutoff_len} tokens (cutoff_len): {self._named(self.truncated)}",
            f"without a token to learn, left out of training: {self._named(self.unlabelled)}",
        ]

    def warnings(self) -> list[str]:
        """What stands out in the rows (:mod:`dataflex.data.notes`), a line each."""
        return sentences(counted(row.notes for row in self.encoded), len(self.encoded))

    def _named(self, places: Sequence[int]) -> str:
        """How many, and the first of them by id."""
        ids = listed((self.samples[place].id for place in places), 5)
        return f"{len(places):,}" + (f" (ids {ids})" if places else "")


def look(samples: Sequence[Sample], template: ChatTemplate, cutoff_len: int, rows: int = ROWS) -> Look:
    """Tokenise some rows.

    Args:
        samples: The dataset, at least one row.
        template: Renders and encodes them.
        cutoff_len: Longest sample in tokens.
        rows: How many, at most.

    Raises:
        DataError: The template cannot render rows (all of those that are looked at are counted).
    """
    places = spread(len(samples), rows)
    chosen = [samples[place] for place in places]
    return Look(len(samples), chosen, template.encode_batch(chosen, cutoff_len), cutoff_len)


def spread(total: int, count: int) -> list[int]:
    """``count`` positions of ``total`` (or all), from the first to the last in equal steps."""
    return [int(place) for place in np.linspace(0, total - 1, min(count, total)).round()]


def learnt_tokens(row: Encoded) -> int:
    """Tokens that carry loss."""
    return sum(end - start for start, end in row.learnt)
