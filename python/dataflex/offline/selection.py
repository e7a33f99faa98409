"""The outcome of an offline selection, with the way back to the rows that it chose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataflex.data.dataset import TokenizedDataset
from dataflex.data.sources import OriginalRow, load_samples, original_rows
from dataflex.errors import DataError, SelectionError
from dataflex.offline.subset import write_rows
from dataflex.selectors.base import Selection
from dataflex.types import Sample
from dataflex.utils.home import home_path

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class RowSource:
    """Where the candidates' rows come from.

    Attributes:
        spec: Names, rows or a ``datasets.Dataset``.
        dataset_dir: Folder of ``dataset_info.json``.
        base_dirs: Where relative paths are looked up after the working directory.
        max_samples: Rows of each source that were read; None: all.
    """

    spec: Any
    dataset_dir: Path | None = None
    base_dirs: tuple[Path, ...] = ()
    max_samples: int | None = None

    def read(self, chosen: Sequence[Sample]) -> list[OriginalRow]:
        """The rows of some samples, as they stand in the source.

        Raises:
            SelectionError: The source has other rows (by now), or came tokenised.
            DataError: It cannot be read.
        """
        if isinstance(self.spec, TokenizedDataset):
            raise SelectionError(
                "the candidates came as a tokenised dataset, which does not know its rows",
                hint="select from rows, files or a datasets.Dataset",
            )
        samples = load_samples(
            self.spec, dataset_dir=self.dataset_dir, base_dirs=self.base_dirs, max_samples=self.max_samples
        )
        found = {sample.row: sample for sample in samples}
        for sample in chosen:
            other = found.get(sample.row)
            if other is None or other.messages != sample.messages:
                raise SelectionError(
                    f"row {sample.row} of the data is not the one that was selected",
                    hint="the data has changed, or is another: pass what was selected from, or select again",
                )
        rows = [sample.row for sample in chosen]
        return original_rows(self.spec, rows, dataset_dir=self.dataset_dir, base_dirs=self.base_dirs)


@dataclass(frozen=True, kw_only=True)
class OfflineSelection(Selection):
    """A selection that was made without training.

    Attributes:
        samples: The n candidates; rows of the data that have nothing to learn are none.
        source: Where their rows come from.
        lengths: Tokens of each candidate.
    """

    samples: Sequence[Sample]
    source: RowSource
    lengths: Sequence[int] = ()

    @property
    def rows(self) -> NDArray[np.int64]:
        """``(num_samples,)`` int64: the chosen rows by their number in the source (``indices`` count candidates)."""
        return np.array([sample.row for sample in self.chosen], dtype=np.int64)

    @property
    def chosen(self) -> list[Sample]:
        """The chosen samples, best first."""
        return [self.samples[index] for index in self.indices.tolist()]

    def to_dataset(self, train_dataset: Any = None) -> Dataset:
        """The chosen rows in their own columns, best first.

        Args:
            train_dataset: The data that was selected from; None: where it came from.

        Raises:
            SelectionError: The data holds other rows (by now).
            DataError: The data cannot be read, or its rows do not fit into one table.
        """
        import datasets

        source = self.source if train_dataset is None else replace(self.source, spec=train_dataset)
        rows = source.read(self.chosen)
        if isinstance(source.spec, datasets.Dataset):
            return source.spec.select(self.rows.tolist())
        try:
            return datasets.Dataset.from_list([dict(row.value) for row in rows])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"the rows do not fit into one table: {error}", hint="use write_jsonl()") from error

    def write_jsonl(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the chosen rows as JSON Lines, best first, each with an object ``_dataflex``.

        The object holds ``score``, ``rank``, ``selector`` and ``row`` (its number in the source). A row of a JSON
        Lines file is copied as it is written there.

        Args:
            path: The file.
            overwrite: Replace it if it exists.

        Raises:
            SelectionError: The file exists and ``overwrite`` is not set, or the data holds other rows by now.
            DataError: The data cannot be read any more, or a value has no form in JSON.
        """
        write_rows(home_path(path), self.source.read(self.chosen), self.notes(), overwrite=overwrite)

    def notes(self) -> Iterable[Mapping[str, Any]]:
        """What is noted with each chosen row."""
        for rank, (index, row) in enumerate(zip(self.indices.tolist(), self.rows.tolist(), strict=True)):
            score = None if self.scores is None else float(self.scores[index])
            yield {"score": score, "rank": rank, "selector": self.selector, "row": row}
