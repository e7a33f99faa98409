"""NEAR: the rows nearest to the target, as an offline search found them.

``dataflex near`` leaves a matrix with each query's nearest candidates. The selector walks it rank by rank (every
query's first neighbour, then every query's second, ...) and takes each row once, until it has enough: all queries get
their say, whatever their distances. Inside a rank the queries come in an order drawn by the run's seed, anew for each
update unless ``advance`` goes on in the last one's: where the rows do not suffice for a whole rank, it is chance that
decides, not the order of the file. The model in training plays no part.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import SelectionError
from dataflex.retrieval.matrix import REBUILD, NearMatrix, load_matrix
from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig
from dataflex.types import Sample

logger = logging.getLogger(__name__)


class NearSelectorConfig(SelectorConfig):
    """Parameters of NEAR."""

    indices_path: Path = Field(
        description="matrix that `dataflex near` saved (.npy, its .json and .rows.npy beside it)"
    )
    cache_dir: Path | None = Field(
        None, description="accepted for DataFlex's files: reading the matrix leaves nothing to keep"
    )
    advance: bool = Field(False, description="go on where the last update stopped, in place of starting from the top")
    verify: bool = Field(
        True, description="check the matrix against the training data; false takes one from elsewhere as it is"
    )

    @field_validator("indices_path")
    @classmethod
    def _exists(cls, value: Path) -> Path:
        if not value.is_file():
            raise ValueError(f"{value.absolute()} does not exist; {REBUILD}")
        return value


class NearSelector(Selector[NearSelectorConfig]):
    """Takes the nearest neighbours of the target rows.

    A candidate's score is minus the best rank that any query gives it (0 for a first neighbour), -inf if none lists
    it.

    Source: the selector of this name in OpenDCAI's DataFlex.

    Example:
        >>> selector = NearSelector(indices_path="top_indices.npy")
    """

    name: ClassVar[str] = "near"
    Config = NearSelectorConfig

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._taken = 0
        self._checked: TokenizedDataset | None = None
        self._walked: tuple[TokenizedDataset, tuple[int, int], NDArray[np.int64]] | None = None
        self._scored: tuple[TokenizedDataset, NDArray[np.float64]] | None = None

    @property
    def reads_text(self) -> tuple[str, ...]:
        """The candidates' text, which the matrix was made of."""
        return ("train_dataset",)

    def check_data(self, samples: Sequence[Sample]) -> None:
        """Read the matrix and compare it with the candidates.

        Raises:
            SelectionError: The matrix is damaged, or belongs to other data.
        """
        if self.config.verify:
            self._matrix.check_samples(samples)
        else:
            _check_range(self._matrix.neighbors, samples, self.config.indices_path)

    def check(self, context: SelectionContext) -> None:
        """Read the matrix and compare it with the training set.

        Raises:
            SelectionError: The matrix is damaged, belongs to other data, or is too short for the selections to come.
        """
        walk = self._walk(context)
        wanted = context.total_samples if self.config.advance else context.num_samples
        if walk.size < wanted:
            raise self._too_few(walk, context, wanted)
        queries = len(self._matrix.neighbors)
        if wanted < queries:
            logger.warning(
                "%d rows are asked for and there are %d target rows: about %d of them, drawn by seed, name a row each, "
                "and the others have no say (a larger update_step or num_samples lets all of them speak)",
                *(wanted, queries, wanted),
            )

    def select(self, context: SelectionContext) -> Selection:
        """Take the first ``num_samples`` candidates of the walk that are not taken yet.

        Raises:
            SelectionError: See :meth:`check`.
        """
        walk = self._walk(context)
        start = self._taken if self.config.advance else 0
        stop = start + context.num_samples
        if stop > walk.size:
            raise self._too_few(walk, context, stop)
        self._taken = stop
        report = {
            "score": "minus the best place that the row has among the neighbours of a target, from 0: 0 is the nearest",
            "queries": len(self._matrix.neighbors),
            "max_K": self._matrix.neighbors.shape[1],
            "distinct": walk.size,
            "walked": [start, stop],
            "encoder": self._matrix.facts.get("encoder"),
        }
        indices, scores = walk[start:stop], self._scores(context.train_dataset)
        return Selection(indices, scores, self.name, context.step, context.round, report)

    def state_dict(self) -> dict[str, Any]:
        """How much of the walk is taken, for ``advance``."""
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._taken = int(state["taken"])

    @cached_property
    def _matrix(self) -> NearMatrix:
        if not self.config.verify:
            logger.warning(
                "%s is taken unchecked (verify: false): its entries are used as row numbers of the training data",
                self.config.indices_path,
            )
        return load_matrix(self.config.indices_path, verify=self.config.verify)

    def _walk(self, context: SelectionContext) -> NDArray[np.int64]:
        """Positions of the distinct neighbours, rank by rank; rows that the training set does not have are skipped."""
        dataset, stream = context.train_dataset, (context.seed, 0 if self.config.advance else context.round)
        if self._walked is not None and self._walked[0] is dataset and self._walked[1] == stream:
            return self._walked[2]
        order = np.random.default_rng(stream).permutation(len(self._matrix.neighbors))
        places, walk = _positions(dataset), self._matrix.walk(order)
        if self._checked is not dataset:  # once: it hashes every row
            self.check_data(dataset.samples)
            self._checked = dataset
        known = places_of(walk, places)
        found = known[known >= 0]
        self._walked = dataset, stream, found
        return found

    def _scores(self, dataset: TokenizedDataset) -> NDArray[np.float64]:
        """Minus the best rank of each candidate, ``(n,)``, found once a dataset."""
        if self._scored is None or self._scored[0] is not dataset:
            self._scored = dataset, best_ranks(self._matrix.neighbors, _positions(dataset), len(dataset))
        return self._scored[1].copy()

    def _too_few(self, walk: NDArray[np.int64], context: SelectionContext, wanted: int) -> SelectionError:
        queries, width = self._matrix.neighbors.shape
        n = len(context.train_dataset)
        # A query's own list has no repeats: with `wanted` of the rows that are trained on, it is enough by itself.
        surely = wanted + max(0, len(self._matrix.rows) - n)
        about = math.ceil(width * wanted / max(walk.size, 1))
        over = " over all updates (advance: true)" if self.config.advance else ""
        text = (
            f"{wanted} samples are to be selected{over}; the {queries} x {width} neighbours in "
            f"{self.config.indices_path} are {walk.size} distinct rows of the training set"
        )
        if wanted > n:
            return SelectionError(f"{text}, which has {n} rows", hint="a smaller update_step, or advance: false")
        return SelectionError(
            text, hint=f"`dataflex near` with max_K: {surely} is sure to do, about {min(about, surely)} may"
        )


def best_ranks(neighbors: NDArray[np.int64], places: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Minus the best rank that any query gives each candidate, ``(n,)``; -inf if none lists it.

    Args:
        neighbors: ``(q, max_K)`` row numbers, nearest first.
        places: As :func:`places_of` takes them.
        count: n.
    """
    scores = np.full(count, -np.inf)
    for rank in reversed(range(neighbors.shape[1])):  # a better rank is written over a worse one
        known = places_of(neighbors[:, rank], places)
        scores[known[known >= 0]] = -rank
    return scores


def places_of(rows: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each row number, -1 where there is none.

    Args:
        rows: Row numbers, from 0.
        places: The position of each row number, -1 for those that have none; the last entry stands for all beyond.
    """
    return places[np.minimum(rows, len(places) - 1)]


def _positions(dataset: TokenizedDataset) -> NDArray[np.int64]:
    """What :func:`places_of` looks up the rows of a dataset in."""
    rows = np.array(dataset.row_numbers(), dtype=np.int64)
    places = np.full(int(rows.max()) + 2, -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    return places


def _check_range(neighbors: NDArray[np.int64], samples: Sequence[Sample], path: Path) -> None:
    """Raise SelectionError if an unchecked matrix names rows beyond the last one of the training data."""
    largest, last = int(neighbors.max()), max(sample.row for sample in samples)
    if largest > last:
        raise SelectionError(f"{path} names row {largest}, the training set ends with row {last}", hint=REBUILD)
