"""The outcome of an offline selection, with the way back to the rows that it chose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dataflex.curriculum.selection_file import write_selection
from dataflex.data.dataset import TokenizedDataset
from dataflex.data.sample_reader import OriginalRow
from dataflex.data.sources import open_samples
from dataflex.errors import DataError, SelectionError
from dataflex.offline.subset import NOTES_KEY, refuse_existing, write_rows
from dataflex.report.read import PAGE, SCORES
from dataflex.selectors.base import Selection
from dataflex.types import Sample
from dataflex.utils.home import home_path
from dataflex.utils.notebook import SHOWN_ROWS, html_table, score_text
from dataflex.utils.shown import quoted

if TYPE_CHECKING:
    from datasets import Dataset
    from pandas import DataFrame

    from dataflex.report.api import Report


@dataclass(frozen=True, repr=False)
class RowSource:
    """Where the candidates' rows come from.

    Attributes:
        spec: Names, rows or a ``datasets.Dataset``.
        dataset_dir: Folder of ``dataset_info.json``.
        base_dirs: Where relative paths are looked up after the working directory.
    """

    spec: Any
    dataset_dir: Path | None = None
    base_dirs: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        named = isinstance(self.spec, str | Path) or (
            isinstance(self.spec, Sequence) and all(isinstance(part, str | Path) for part in self.spec)
        )
        return f"RowSource({quoted(self.spec) if named else f'{type(self.spec).__name__} of {len(self.spec):,} rows'})"

    def read(self, chosen: Sequence[Sample]) -> list[OriginalRow]:
        """The rows of some samples, as they stand in the source; rows that came as tokens are not compared again.

        Raises:
            SelectionError: The source has other rows (by now), or came as a tokenised dataset.
            DataError: It cannot be read.
        """
        if isinstance(self.spec, TokenizedDataset):
            raise SelectionError(
                "the candidates came as a tokenised dataset, which does not know its rows",
                hint="select from rows, files or a datasets.Dataset",
            )
        reader = open_samples(self.spec, dataset_dir=self.dataset_dir, base_dirs=self.base_dirs)
        rows = [sample.row for sample in chosen]
        if not any(sample.messages for sample in chosen):
            return reader.originals(rows)
        there = [row for row in rows if row < reader.num_rows]
        messages = {sample.row: sample.messages for sample in reader.take_rows(there)}
        for sample in chosen:
            if messages.get(sample.row) != sample.messages:
                raise SelectionError(
                    f"row {sample.row} of the data is not the one that was selected",
                    hint="the data has changed, or is another: pass what was selected from, or select again",
                )
        return reader.originals(rows)


@dataclass(frozen=True, kw_only=True, repr=False)
class OfflineSelection(Selection):
    """A selection that was made without training.

    Attributes:
        candidates: The n candidates; rows of the data that have nothing to learn are none.
        source: Where their rows come from.
    """

    candidates: TokenizedDataset
    source: RowSource

    @property
    def samples(self) -> Sequence[Sample]:
        """The n candidates' samples."""
        return self.candidates.samples

    @property
    def rows(self) -> NDArray[np.int64]:
        """``(num_samples,)`` int64: the chosen rows by their number in the source (``indices`` count candidates)."""
        return np.array([sample.row for sample in self.chosen], dtype=np.int64)

    @property
    def chosen(self) -> list[Sample]:
        """The chosen samples, best first."""
        return [self.samples[index] for index in self.indices.tolist()]

    def to_dataset(self, train_dataset: Any = None, *, notes: bool = True) -> Dataset:
        """The chosen rows in their own columns, best first, each with what :meth:`write_jsonl` notes.

        Args:
            train_dataset: The data that was selected from; None: where it came from.
            notes: Add the column ``_dataflex``: ``score``, ``rank``, ``selector`` and ``row`` of each.

        Raises:
            SelectionError: The data holds other rows (by now).
            DataError: The data cannot be read, or its rows do not fit into one table.
        """
        import datasets

        source = self.source if train_dataset is None else replace(self.source, spec=train_dataset)
        rows = source.read(self.chosen)
        noted = list(self.notes())
        if isinstance(source.spec, datasets.Dataset):
            found = source.spec.select(self.rows.tolist())
            if not notes:
                return found
            kept = found.remove_columns([name for name in found.column_names if name == NOTES_KEY])
            return datasets.concatenate_datasets([kept, datasets.Dataset.from_dict({NOTES_KEY: noted})], axis=1)
        try:
            return datasets.Dataset.from_list(
                [
                    {**row.value, NOTES_KEY: note} if notes else dict(row.value)
                    for row, note in zip(rows, noted, strict=True)
                ]
            )
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"the rows do not fit into one table: {error}", hint="use write_jsonl()") from error

    def to_pandas(self) -> DataFrame:
        """The chosen candidates, best first.

        Columns: ``rank``, ``index`` (position among the candidates), ``score``, ``id``, ``row`` and ``source`` (where
        it stands in the data), ``prompt`` (content of the turn before the answer) and ``answer``.
        """
        chosen = self.chosen
        return (
            super()
            .to_pandas()
            .assign(
                id=[sample.id for sample in chosen],
                row=[sample.row for sample in chosen],
                source=[sample.source for sample in chosen],
                prompt=[sample.prompt[-1]["content"] if sample.prompt else "" for sample in chosen],
                answer=[sample.reference for sample in chosen],
            )
        )

    def _repr_html_(self) -> str:
        first = self.to_pandas().head(SHOWN_ROWS)
        rows = [(row.rank, score_text(row.score), row.id, row.prompt, row.answer) for row in first.itertuples()]
        return html_table(repr(self), ("rank", "score", "id", "prompt", "answer"), rows, len(self.indices))

    def _described(self, candidates: int | None = None) -> str:
        return super()._described(len(self.samples))

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

    def write_report(self, path: str | Path, *, task_column: str = "task", overwrite: bool = False) -> Report:
        """Write the page that ``dataflex select`` writes, and the scores of all candidates that it is made from.

        Args:
            path: The subset that they stand beside, there or not: for ``subset.jsonl`` the files are
                ``subset.report.html`` and ``subset.scores.parquet``. The page shows the rewarded answers of a
                selection whose ``output_dir`` was ``subset.work``.
            task_column: Column of the rows that groups them.
            overwrite: Replace the files if they exist.

        Returns:
            The same report as tables.

        Raises:
            SelectionError: A file exists and ``overwrite`` is not set.
        """
        from dataflex.report.api import Report

        place = home_path(path)
        name = place.name.removesuffix(".jsonl")
        scores, page = place.with_name(f"{name}{SCORES}"), place.with_name(f"{name}.{PAGE}")
        refuse_existing([scores, page], overwrite=overwrite)
        write_selection(scores, self, self.candidates, task_column)
        report = Report(scores)
        report.write()
        return report

    def notes(self) -> Iterable[Mapping[str, Any]]:
        """What is noted with each chosen row."""
        for rank, (index, row) in enumerate(zip(self.indices.tolist(), self.rows.tolist(), strict=True)):
            score = None if self.scores is None else float(self.scores[index])
            yield {"score": score, "rank": rank, "selector": self.selector, "row": row}
