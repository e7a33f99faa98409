"""The rows that a foreign trainer reads, in an order that is set from outside, and what the trainer makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate.data_loader import IterableDatasetShard
from datasets import IterableDataset
from numpy.typing import NDArray

from dataflex.data.dataset import TokenizedDataset, example_of_columns, sample_of_tokens
from dataflex.data.rows import recognise
from dataflex.data.sources import load_samples
from dataflex.errors import DataError, TrainingError
from dataflex.types import Sample
from dataflex.utils.shown import listed


class RowStream:
    """Yields rows of a user's data in the order that was set last.

    Each iteration reads the order once, when it begins, and ends with it: a reader that looks ahead finds the end. A
    data loader's worker process gets the order with its copy of the stream, which is made when an iterator is.

    Args:
        data: The user's rows, addressed by position.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]]) -> None:
        self._data: Any = ()  # datasets hashes what a data set is made of, row by row
        self._order: NDArray[np.int64] | None = None
        self.read = 0
        """Rows that were read in this process."""
        self.dataset = IterableDataset.from_generator(_read, gen_kwargs={"stream": self})
        """The stream as trainers take it; it has no length, and one worker process at most reads it."""
        self._data = data

    def show(self, data: Sequence[Mapping[str, Any]], order: Iterable[int]) -> None:
        """From the next iteration on, yield these rows of ``data``."""
        self._data, self._order = data, np.fromiter(order, dtype=np.int64)

    def close(self) -> None:
        """Yield the first row alone again, until an order is set."""
        self._order = None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows in their order; before one was set, the first row, which trainers look at to know the columns.

        Raises:
            TrainingError: More is read before an order was set.
        """
        data, order = self._data, self._order
        if order is None:
            yield dict(data[0])
            raise TrainingError(
                "the rows are read by a trainer that does not have the curriculum's callback",
                hint="callbacks=[curriculum.callback]",
            )
        for position in order.tolist():
            self.read += 1
            yield dict(data[position])


def _read(stream: RowStream) -> Iterator[dict[str, Any]]:
    yield from stream.rows()


def check_rows(data: Any, what: str) -> None:
    """Raise DataError unless ``data`` are rows that can be addressed by their position."""
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__") or isinstance(data, Mapping | str):
        raise DataError(
            f"{what}: expected rows that are addressed by their position, got {type(data).__name__}",
            hint="a datasets.Dataset, a list of dicts or another dataset with a length: a selection names positions, "
            "which a stream does not have",
        )
    if not len(data):
        raise DataError(f"{what}: there are no rows")
    if not isinstance(data[0], Mapping):
        raise DataError(f"{what}: expected rows that are mappings, got {type(data[0]).__name__}")


def as_trained(
    stream: RowStream, data: Sequence[Mapping[str, Any]], loader: Any, samples: Sequence[Sample], what: str
) -> TokenizedDataset:
    """Tokens and labels of rows, made by the trainer's own preparation and its own collator, each row alone.

    Args:
        stream: Feeds the trainer's data set.
        data: The rows.
        loader: The trainer's data loader over its training set.
        samples: What each row is.
        what: How messages call the rows.

    Raises:
        DataError: The trainer does not read the stream, leaves rows out, makes more of them, or its collator makes no
            labels.
    """
    dataset, collate, before = _innermost(loader), loader.collate_fn, stream.read
    stream.show(data, range(len(data)))
    rows = iter(dataset)
    found = TokenizedDataset.packed(
        example_of_columns(_row(collate([row]), what), place, sample)
        for place, (row, sample) in enumerate(zip(rows, samples, strict=False))
    )
    if stream.read == before:
        raise DataError(
            "the trainer's train_dataset is not the curriculum's", hint="train_dataset=curriculum.train_dataset"
        )
    if next(rows, None) is not None:
        raise DataError(f"{what}: the trainer makes more rows than the {len(data)} that it is given")
    if len(found) != len(data):
        raise _left_out(stream, data, dataset, what)
    return found


def _innermost(loader: Any) -> Iterable[Mapping[str, Any]]:
    """The data set that a loader reads, without what shares it among processes."""
    dataset = loader.dataset
    while isinstance(dataset, IterableDatasetShard):
        dataset = dataset.dataset
    found: Iterable[Mapping[str, Any]] = dataset
    return found


def _left_out(stream: RowStream, data: Sequence[Mapping[str, Any]], dataset: Iterable[Any], what: str) -> DataError:
    """The error that names the rows which do not come through the trainer's preparation."""

    def lost(position: int) -> bool:
        stream.show(data, [position])
        return next(iter(dataset), None) is None

    found = [str(position) for position in range(len(data)) if lost(position)]
    return DataError(
        f"{what}: the trainer leaves out {len(found)} of {len(data)} rows, which a selection could choose: rows "
        f"{listed(found, 5)}",
        hint="remove them first, or raise max_length: none of their tokens within it carries loss",
    )


def _row(batch: Mapping[str, Any], what: str) -> dict[str, list[int]]:
    """The token columns of a batch of one row."""
    if "labels" not in batch or "input_ids" not in batch:
        raise DataError(
            f"{what}: the trainer's collator makes {', '.join(batch) or 'nothing'}, and no labels",
            hint="a collator for language models, as DataCollatorForSeq2Seq or DataCollatorForLanguageModeling",
        )
    names = ("input_ids", "labels", "attention_mask")
    return {name: batch[name][0].tolist() for name in names if batch.get(name) is not None}


def samples_of(data: Sequence[Mapping[str, Any]], raw: Any, what: str) -> tuple[list[Sample], bool]:
    """The sample of each row, and whether it has the row's text.

    Args:
        data: The rows that the trainer is given.
        raw: The same rows before they were tokenised, in a known form; None: ``data`` may have that form itself.
        what: How messages call the rows.

    Raises:
        DataError: ``raw`` has another number of rows or no known form.
    """
    if raw is None:
        if not _has_form(data[0]):
            return [sample_of_tokens(data[position], position) for position in range(len(data))], False
        raw = data
    samples = load_samples(raw if isinstance(raw, str | list) or hasattr(raw, "column_names") else list(raw))
    if len(samples) != len(data):
        raise DataError(f"{what}: {len(samples)} raw rows were given for {len(data)} rows")
    return samples, True


def _has_form(row: Mapping[str, Any]) -> bool:
    try:
        recognise(row, "")
    except DataError:
        return False
    return True
