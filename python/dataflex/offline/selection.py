"""The outcome of an offline selection, with the way back to the rows that it chose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataflex.data.dataset import TokenizedDataset
from dataflex.data.sources import OriginalRow, load_samples, original_rows
from dataflex.errors import SelectionError
from dataflex.offline.subset import write_rows
from dataflex.types import Sample, Selection

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class RowSource:
    """Where the candidates' rows come from: names, rows or a ``datasets.Dataset``, and where names are looked up."""

    spec: Any
    dataset_dir: Path | None = None
    base_dirs: tuple[Path, ...] = ()

    def read(self, rows: Sequence[int]) -> list[OriginalRow]:
        """Rows by number, as they stand in the source.

        Raises:
            SelectionError: The candidates came tokenised.
            DataError: The source cannot be read (any more).
        """
        if isinstance(self.spec, TokenizedDataset):
            raise SelectionError(
                "the candidates came as a tokenised dataset, which does not know its rows",
                hint="select from rows, files or a datasets.Dataset",
            )
        return original_rows(self.spec, rows, dataset_dir=self.dataset_dir, base_dirs=self.base_dirs)


@dataclass(frozen=True)
class OfflineSelection(Selection):
    """A selection that was made without training.

    Attributes:
        samples: The n candidates; rows of the data that have nothing to learn are none.
        source: Where their rows come from.
    """

    samples: Sequence[Sample] = ()
    source: RowSource = field(default_factory=lambda: RowSource(None))

    @property
    def rows(self) -> NDArray[np.int64]:
        """Numbers of the chosen rows in the source, best first (``indices`` count candidates)."""
        return np.array([self.samples[index].row for index in self.indices.tolist()], dtype=np.int64)

    def to_dataset(self, train_dataset: Any = None) -> Dataset:
        """The chosen rows in their own columns, best first.

        Args:
            train_dataset: The data that was selected from; None: where it came from.

        Raises:
            SelectionError: ``train_dataset`` holds other rows.
            DataError: The data cannot be read, or its rows do not fit into one table.
        """
        import datasets

        data = self.source.spec if train_dataset is None else train_dataset
        if isinstance(data, datasets.Dataset):
            if self.rows.size and self.rows.max() >= len(data):
                raise SelectionError(f"row {self.rows.max()} was selected, and the dataset has {len(data)} rows")
            subset = data.select(self.rows.tolist())
            self._check_same(load_samples(subset))
            return subset
        source = self.source if train_dataset is None else RowSource(train_dataset, self.source.dataset_dir)
        values = [dict(row.value) for row in source.read(self.rows.tolist())]
        self._check_same(load_samples(values))
        return datasets.Dataset.from_list(values)

    def write_jsonl(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the chosen rows as JSON Lines, best first, each with an object ``_dataflex``.

        The object holds ``score``, ``rank``, ``selector`` and ``row`` (its number in the source). A row of a JSON
        Lines file is copied as it is written there.

        Raises:
            SelectionError: The file exists and ``overwrite`` is not set.
            DataError: The data cannot be read (any more), or a value has no form in JSON.
        """
        write_rows(Path(path), self.source.read(self.rows.tolist()), self.notes(), overwrite=overwrite)

    def notes(self) -> Iterable[Mapping[str, Any]]:
        """What is noted with each chosen row."""
        for rank, (index, row) in enumerate(zip(self.indices.tolist(), self.rows.tolist(), strict=True)):
            score = None if self.scores is None else float(self.scores[index])
            yield {"score": score, "rank": rank, "selector": self.selector, "row": row}

    def _check_same(self, found: Sequence[Sample]) -> None:
        for index, sample in zip(self.indices.tolist(), found, strict=True):
            if sample.messages != self.samples[index].messages:
                raise SelectionError(
                    f"row {self.samples[index].row} of this dataset is not the one that was selected",
                    hint="pass the data that was selected from, with its rows in the same order",
                )
