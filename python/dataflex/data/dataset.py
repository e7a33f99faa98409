"""Tokenised datasets: samples with their token ids and labels, and what became of the rest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.data.examples import ArrayRows, ChosenSamples, ExampleRows, TokenisedRows, packed_rows
from dataflex.data.examples import Example as Example
from dataflex.data.notes import sentences
from dataflex.data.plain import plain
from dataflex.data.problems import Problems
from dataflex.data.row_store import StoredSamples
from dataflex.data.sample_reader import PART
from dataflex.data.templates import ChatTemplate
from dataflex.data.token_rows import TokenPart, joined
from dataflex.errors import DataError
from dataflex.types import Sample, group_name
from dataflex.utils.notebook import SHOWN_ROWS, html_table
from dataflex.utils.progress import progress_bar
from dataflex.utils.shown import listed

if TYPE_CHECKING:
    from pandas import DataFrame

T = TypeVar("T")
logger = logging.getLogger(__name__)

_COLUMNS = ("id", "row", "source", "tokens", "learnt", "truncated", "prompt", "answer")


@dataclass(frozen=True, slots=True)
class TokenizationReport:
    """What became of the samples.

    Attributes:
        total: Samples that came in.
        kept: Samples in the dataset.
        truncated: Kept samples that were cut to fit ``cutoff_len``.
        dropped: Samples left out because they have no label token.
        tokens: Tokens of the kept samples.
        label_tokens: Tokens of theirs that carry loss.
        notes: What stands out in the kept samples (:mod:`dataflex.data.notes`), each with the number of samples.
    """

    total: int
    kept: int
    truncated: int
    dropped: int
    tokens: int
    label_tokens: int
    notes: Mapping[str, int] = field(default_factory=dict)

    def warnings(self) -> list[str]:
        """What stands out, a line each."""
        return sentences(self.notes, self.kept)

    def describe(self) -> str:
        """The report in one line."""
        cut = f", {self.truncated:,} cut to length" if self.truncated else ""
        out = f", {self.dropped:,} dropped (no label tokens)" if self.dropped else ""
        tokens = f"{self.tokens:,} tokens, {self.label_tokens:,} of them with loss"
        return f"{self.kept:,} of {self.total:,} samples, {tokens}{cut}{out}"


class TokenizedDataset(Sequence[Example]):
    """n tokenised samples.

    Args:
        examples: The samples, tokenised.
        dropped: How many more there were without a label token, for the report.
    """

    def __init__(self, examples: Iterable[Example], *, dropped: int = 0) -> None:
        self._rows: TokenisedRows = ExampleRows(examples)
        self._places: NDArray[np.int64] | None = None
        self._dropped = dropped

    @classmethod
    def of_rows(
        cls, rows: TokenisedRows, places: NDArray[np.int64] | None = None, *, dropped: int = 0
    ) -> TokenizedDataset:
        """Some rows of a collection, or all of them.

        Args:
            rows: The collection.
            places: ``(n,)`` int64 positions in it; None: all, in their order.
            dropped: As above.
        """
        made = cls((), dropped=dropped)
        made._rows, made._places = rows, places
        return made

    @cached_property
    def report(self) -> TokenizationReport:
        """Counts, including the samples that were dropped."""
        return TokenizationReport(
            total=len(self) + self._dropped,
            kept=len(self),
            truncated=int(self._taken(self._rows.truncated()).sum()),
            dropped=self._dropped,
            tokens=int(self._taken(self._rows.lengths()).sum()),
            label_tokens=int(self.label_counts.sum()),
            notes=self._rows.count_notes(self._places),
        )

    @classmethod
    def from_columns(
        cls, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sample] | None = None
    ) -> TokenizedDataset:
        """Rows that were tokenised already: ``datasets.Dataset`` or mappings, as transformers and TRL make them.

        Every row is kept, at its position. Its labels are, in this order: its ``labels``; its ``input_ids`` where
        ``completion_mask`` and ``assistant_masks`` (those that it has) are 1; else all of its ``input_ids``. Padding
        (``attention_mask`` 0) is left out.

        Args:
            rows: n rows with ``input_ids``.
            samples: What each row is; None: ``id`` (or the position) and the other columns, without a text.

        Raises:
            DataError: A row has no ``input_ids``, has columns of different lengths, or is packed of several.
        """
        if samples is not None and len(samples) != len(rows):
            raise DataError(f"{len(samples)} samples were given for {len(rows)} tokenised rows")
        known = samples or repeat(None)
        return cls.packed(
            example_of_columns(row, place, sample) for place, (row, sample) in enumerate(zip(rows, known, strict=False))
        )

    @classmethod
    def packed(cls, examples: Iterable[Example]) -> TokenizedDataset:
        """All of some examples, taken one by one, their tokens as arrays: 4 bytes and a bit a token."""
        return cls.of_rows(packed_rows(examples))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> TokenizedDataset: ...
    def __getitem__(self, index: int | slice) -> Example | TokenizedDataset:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        place = range(len(self))[index]
        return self._rows.example(place if self._places is None else int(self._places[place]))

    def __len__(self) -> int:
        return len(self._rows) if self._places is None else len(self._places)

    @property
    def samples(self) -> Sequence[Sample]:
        """The sample of each example; those of data on disk are read when they are asked for."""
        return self._rows.samples if self._places is None else ChosenSamples(self._rows.samples, self._places)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        found: list[int] = self._taken(self._rows.lengths()).tolist()
        return found

    @property
    def label_counts(self) -> NDArray[np.int64]:
        """``(n,)`` int64: tokens of each example that carry loss (:attr:`Example.num_labels`)."""
        return self._taken(self._rows.counts())

    def row_numbers(self) -> list[int]:
        """``Sample.row`` of each example."""
        return self._of_samples(lambda stored: self._taken(stored.rows).tolist(), lambda sample: sample.row)

    def ids(self) -> list[str]:
        """``Sample.id`` of each example."""
        return self._of_samples(lambda stored: [*map(stored.id, self._each())], lambda sample: sample.id)

    def sources(self) -> list[str]:
        """``Sample.source`` of each example."""
        return self._of_samples(lambda stored: [*map(stored.source, self._each())], lambda sample: sample.source)

    def groups(self, column: str) -> list[str | None]:
        """The value of a column of each example as text; see :func:`dataflex.types.group_names`."""

        def of_stored(stored: StoredSamples) -> list[str | None]:
            return [group_name(stored.metadata(place), column) for place in self._each()]

        return self._of_samples(of_stored, lambda sample: group_name(sample.metadata, column))

    def _each(self) -> Iterable[int]:
        return range(len(self)) if self._places is None else self._places.tolist()

    def _of_samples(self, stored: Callable[[StoredSamples], list[T]], single: Callable[[Sample], T]) -> list[T]:
        """Something of each sample: without its texts, where these would have to be read."""
        samples = self._rows.samples
        return stored(samples) if isinstance(samples, StoredSamples) else [single(sample) for sample in self.samples]

    @property
    def id_bounds(self) -> tuple[int, int]:
        """No token id, and no label of a token that carries loss, is below the first or above the second."""
        return self._rows.id_bounds

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the token ids and labels of all examples in their order, in hex."""
        known = self._rows.known_fingerprint(self._places)
        if known is not None:
            return known
        digest = hashlib.sha256()
        for example in self:
            digest.update(len(example.input_ids).to_bytes(8, "little"))
            digest.update(np.asarray([example.input_ids, example.labels], dtype="<i8").tobytes())  # (2, t)
        return digest.hexdigest()

    def _taken(self, values: NDArray[Any]) -> NDArray[Any]:
        return values if self._places is None else values[self._places]

    def to_pandas(self) -> DataFrame:
        """A row a sample.

        Columns: ``id``, ``row`` and ``source`` (where it stands in the data), ``tokens``, ``learnt`` (those with
        loss), ``truncated``, ``prompt`` (content of the turn before the answer) and ``answer``.
        """
        import pandas as pd

        return pd.DataFrame([_described(example) for example in self], columns=_COLUMNS)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.report.describe()})"

    def _repr_html_(self) -> str:
        rows = [list(_described(example).values()) for example in self[:SHOWN_ROWS]]
        return html_table(repr(self), _COLUMNS, rows, len(self))

    def select(self, indices: Iterable[int]) -> TokenizedDataset:
        """The examples at ``indices``, in that order; a position may occur more than once."""
        wanted = np.fromiter((range(len(self))[int(index)] for index in indices), dtype=np.int64)
        return TokenizedDataset.of_rows(self._rows, self._taken(np.arange(len(self._rows)))[wanted])


_MASKS = ("completion_mask", "assistant_masks")
_TOKENS = ("input_ids", "labels", "attention_mask", "position_ids", *_MASKS)
"""Columns of a tokenised row, one value a token; the others describe it."""


def sample_of_tokens(row: Mapping[str, Any], position: int) -> Sample:
    """What is known of a row that was tokenised: its id, its position and its other columns, and no text."""
    metadata = {str(name): plain(value) for name, value in row.items() if name not in _TOKENS}
    return Sample(id=str(row.get("id", position)), row=position, messages=(), metadata=metadata)


def example_of_columns(row: Mapping[str, Any], position: int, sample: Sample | None) -> Example:
    """A tokenised row as an example; see :meth:`TokenizedDataset.from_columns`."""
    if row.get("input_ids") is None:
        raise DataError(
            f"row {position} has no input_ids, only {', '.join(map(str, row)) or 'nothing'}",
            hint="tokenise the rows first, or hand over rows of text as they are",
        )
    if len(row.get("seq_lengths") or ()) > 1:
        raise DataError(f"row {position} is packed of several rows, which cannot be selected one by one")
    columns = {name: [int(value) for value in row[name]] for name in _TOKENS if row.get(name) is not None}
    sizes = {name: len(values) for name, values in columns.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"row {position} has columns of different lengths: {sizes}")
    length = len(columns["input_ids"])
    real = [place for place, bit in enumerate(columns.get("attention_mask", [1] * length)) if bit]
    labelled = columns.get("labels", columns["input_ids"])
    masks = [] if "labels" in columns else [columns[name] for name in _MASKS if name in columns]
    labels = [labelled[place] if all(mask[place] for mask in masks) else IGNORE_INDEX for place in real]
    ids = [columns["input_ids"][place] for place in real]
    if labels:
        labels[0] = IGNORE_INDEX  # nothing predicts the first token
    return Example(sample or sample_of_tokens(row, position), ids, labels)


def _described(example: Example) -> dict[str, object]:
    """What a person wants to see of a sample, by the names of ``_COLUMNS``."""
    sample = example.sample
    return {
        "id": sample.id,
        "row": sample.row,
        "source": sample.source,
        "tokens": len(example.input_ids),
        "learnt": example.num_labels,
        "truncated": example.truncated,
        "prompt": sample.prompt[-1]["content"] if sample.prompt else "",
        "answer": sample.reference,
    }


def tokenize(
    samples: Sequence[Sample],
    template: ChatTemplate,
    cutoff_len: int,
    *,
    keep_unlabelled: bool = False,
    progress: bool = True,
    name: str = "data",
) -> TokenizedDataset:
    """Tokenise samples and leave out those without label tokens; warn about what stands out in the others.

    Args:
        samples: The samples.
        template: Renders and encodes them.
        cutoff_len: Greatest number of tokens of one sample (:meth:`ChatTemplate.encode` says what is cut).
        keep_unlabelled: Keep samples without label tokens too: an evaluation prompt that is only answered by the model
            needs no reference.
        progress: Show a progress bar.
        name: How messages call the samples.

    Raises:
        DataError: Samples cannot be rendered (all of them are counted), or none is left.
    """
    parts = []
    problems = Problems()
    with progress_bar(len(samples), "tokenising", unit="sample", disable=not progress) as bar:
        for start in range(0, len(samples), PART):
            part = samples[start : start + PART]
            parts.append(TokenPart.of(template.encode_batch(part, cutoff_len, problems)))
            bar.update(len(part))
    template.raise_refused(problems, len(samples))
    return kept_dataset(ArrayRows(joined(parts), samples), keep_unlabelled=keep_unlabelled, name=name)


def kept_dataset(
    rows: TokenisedRows, places: NDArray[np.int64] | None = None, *, keep_unlabelled: bool, name: str
) -> TokenizedDataset:
    """The dataset of those rows that can be learnt from; what stands out in them is warned about.

    Args:
        rows: Tokenised rows.
        places: Positions of those that are meant; None: all.
        keep_unlabelled: As for :func:`tokenize`.
        name: As for :func:`tokenize`.

    Raises:
        DataError: None is left.
    """
    whole = TokenizedDataset.of_rows(rows, places)
    kept = whole.label_counts > 0
    dataset = whole
    if not keep_unlabelled and not kept.all():
        chosen = np.flatnonzero(kept) if places is None else places[kept]
        dataset = TokenizedDataset.of_rows(rows, chosen, dropped=len(whole) - len(chosen))
    if not dataset:
        raise _nothing_left(whole.samples)
    for line in dataset.report.warnings():
        logger.warning("%s: %s", name, line)
    return dataset


def check_labels(dataset: TokenizedDataset) -> None:
    """See that every sample of a dataset that was tokenised by hand can be learnt from.

    Raises:
        DataError: Some have no token that carries loss; they are counted, and a few are named.
    """
    places = np.flatnonzero(dataset.label_counts == 0).tolist()
    without = [dataset[place].sample.id for place in places]
    if without:
        raise DataError(
            f"{len(without)} of {len(dataset)} samples have no token that carries loss: {listed(without, 5)}",
            hint="leave them out, or set labels; a label on the first token does not count: nothing predicts it",
        )


def _nothing_left(samples: Sequence[Sample]) -> DataError:
    if not samples:
        return DataError("there are no samples to tokenise")
    turns = [message for sample in samples for message in sample.messages if message["role"] == "assistant"]
    if not turns:
        hint = "no conversation has an assistant turn: map the column of the answers (`response`, or `assistant_tag`)"
    elif not any(turn.get("train", True) for turn in turns):
        hint = "every assistant turn has loss weight 0"
    else:
        hint = "the template marks no tokens of the assistant: check its generation markers"
    return DataError(f"none of the {len(samples)} samples has a token that carries loss", hint=hint)
