"""Tokenised datasets: samples with their token ids and labels, and what became of the rest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.data.notes import counted, sentences
from dataflex.data.plain import plain
from dataflex.data.problems import Problems
from dataflex.data.templates import ChatTemplate
from dataflex.errors import DataError
from dataflex.types import Sample
from dataflex.utils.notebook import SHOWN_ROWS, html_table
from dataflex.utils.progress import progress_bar
from dataflex.utils.shown import listed, quoted

if TYPE_CHECKING:
    from pandas import DataFrame

logger = logging.getLogger(__name__)

_BATCH = 256
"""Samples a call of the tokenizer: enough to keep its threads busy, few enough for a moving progress bar."""
_COLUMNS = ("id", "row", "source", "tokens", "learnt", "truncated", "prompt", "answer")


@dataclass(frozen=True, slots=True, repr=False)
class Example:
    """A tokenised sample.

    Attributes:
        sample: Where it comes from.
        input_ids: t token ids.
        labels: t labels, -100 where there is no loss.
        truncated: Tokens were cut to fit ``cutoff_len``.
        notes: What stands out in it, see :mod:`dataflex.data.notes`.
    """

    sample: Sample
    input_ids: list[int]
    labels: list[int]
    truncated: bool = False
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        cut = ", cut" if self.truncated else ""
        return f"Example({quoted(self.sample.id)}, {len(self.input_ids):,} tokens, {self.num_labels:,} learnt{cut})"

    @property
    def num_labels(self) -> int:
        """Tokens that carry loss; a label on the first token does not: nothing before it could predict it."""
        predicted = self.labels[1:]
        return len(predicted) - predicted.count(IGNORE_INDEX)


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

    Attributes:
        report: Counts, including the samples that were dropped.
    """

    def __init__(self, examples: Iterable[Example], *, dropped: int = 0) -> None:
        self._examples = list(examples)
        kept = len(self._examples)
        self.report = TokenizationReport(
            total=kept + dropped,
            kept=kept,
            truncated=sum(example.truncated for example in self._examples),
            dropped=dropped,
            tokens=sum(len(example.input_ids) for example in self._examples),
            label_tokens=sum(example.num_labels for example in self._examples),
            notes=counted(example.notes for example in self._examples),
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
        return cls(_columns(rows[row], row, None if samples is None else samples[row]) for row in range(len(rows)))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> TokenizedDataset: ...
    def __getitem__(self, index: int | slice) -> Example | TokenizedDataset:
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        return self._examples[index]

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def samples(self) -> list[Sample]:
        """The sample of each example."""
        return [example.sample for example in self._examples]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(example.input_ids) for example in self._examples]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the token ids and labels of all examples in their order, in hex."""
        digest = hashlib.sha256()
        for example in self._examples:
            digest.update(len(example.input_ids).to_bytes(8, "little"))
            digest.update(np.asarray([example.input_ids, example.labels], dtype="<i8").tobytes())  # (2, t)
        return digest.hexdigest()

    def to_pandas(self) -> DataFrame:
        """A row a sample.

        Columns: ``id``, ``row`` and ``source`` (where it stands in the data), ``tokens``, ``learnt`` (those with
        loss), ``truncated``, ``prompt`` (content of the turn before the answer) and ``answer``.
        """
        import pandas as pd

        return pd.DataFrame([_described(example) for example in self._examples], columns=_COLUMNS)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.report.describe()})"

    def _repr_html_(self) -> str:
        rows = [list(_described(example).values()) for example in self._examples[:SHOWN_ROWS]]
        return html_table(repr(self), _COLUMNS, rows, len(self))

    def select(self, indices: Iterable[int]) -> TokenizedDataset:
        """The examples at ``indices``, in that order; a position may occur more than once."""
        return TokenizedDataset(self._examples[int(index)] for index in indices)


_MASKS = ("completion_mask", "assistant_masks")
_TOKENS = ("input_ids", "labels", "attention_mask", "position_ids", *_MASKS)
"""Columns of a tokenised row, one value a token; the others describe it."""


def sample_of_tokens(row: Mapping[str, Any], position: int) -> Sample:
    """What is known of a row that was tokenised: its id, its position and its other columns, and no text."""
    metadata = {str(name): plain(value) for name, value in row.items() if name not in _TOKENS}
    return Sample(id=str(row.get("id", position)), row=position, messages=(), metadata=metadata)


def _columns(row: Mapping[str, Any], position: int, sample: Sample | None) -> Example:
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
    examples = []
    problems = Problems()
    with progress_bar(len(samples), "tokenising", unit="sample", disable=not progress) as bar:
        for start in range(0, len(samples), _BATCH):
            part = samples[start : start + _BATCH]
            encoded = template.encode_batch(part, cutoff_len, problems)
            for sample, row in zip(part, encoded, strict=not problems.count):
                example = Example(sample, row.input_ids, row.labels, row.truncated, row.notes)
                if keep_unlabelled or example.num_labels:
                    examples.append(example)
            bar.update(len(part))
    template.raise_refused(problems, len(samples))
    if not examples:
        raise _nothing_left(samples)
    dataset = TokenizedDataset(examples, dropped=len(samples) - len(examples))
    for line in dataset.report.warnings():
        logger.warning("%s: %s", name, line)
    return dataset


def check_labels(dataset: TokenizedDataset) -> None:
    """See that every sample of a dataset that was tokenised by hand can be learnt from.

    Raises:
        DataError: Some have no token that carries loss; they are counted, and a few are named.
    """
    without = [example.sample.id for example in dataset if not example.num_labels]
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
