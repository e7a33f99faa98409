"""Rows of one source turned into samples: which format, which columns, and every bad row reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from dataflex.data.formats import COLUMN_KEYS, TAG_KEYS, Columns, DatasetFormat, Row
from dataflex.data.hints import SUPPORTED, nearest_hint
from dataflex.data.problems import Problems
from dataflex.data.refusals import Media, check_row
from dataflex.errors import DataError, PluginError
from dataflex.plugins.registry import registry
from dataflex.types import Sample
from dataflex.utils.foreign import foreign


@dataclass(frozen=True)
class Layout:
    """How a source says that its rows are to be read; empty: recognise them by their columns.

    Attributes:
        formatting: Name of a dataset format.
        columns: LLaMA-Factory's ``columns``: those that it leaves out do not exist.
        tags: LLaMA-Factory's ``tags``: those that it leaves out do not exist.
    """

    formatting: str | None = None
    columns: Mapping[str, str] | None = None
    tags: Mapping[str, str] | None = None

    def is_empty(self) -> bool:
        """Nothing was said."""
        return self.formatting is None and self.columns is None and self.tags is None


@dataclass
class Refused:
    """What is wrong with rows of one source, collected part by part.

    Attributes:
        media: Rows that hold more than text.
        unknown: Why the form of the rows is not known; None: it is.
        columns: Columns that some row has, where a mapping names columns.
        problems: Rows that cannot be read.
        total: Rows that were looked at.
    """

    media: Media
    unknown: DataError | None = None
    columns: set[str] = field(default_factory=set)
    problems: Problems = field(default_factory=Problems)
    total: int = 0

    def add(self, other: Refused) -> Refused:
        """Add what is wrong with rows further on; returns itself."""
        self.media.add(other.media)
        self.unknown = self.unknown or other.unknown
        self.columns |= other.columns
        self.problems.extend(other.problems)
        self.total += other.total
        return self


class RowConverter:
    """Turns the rows of one source into samples, a part of them at a time.

    Args:
        first: The source's first row, which decides about its form.
        where: Name of the source, for messages.
        layout: What the source says about the form.
    """

    def __init__(self, first: Row, where: str, layout: Layout) -> None:
        self._where = where
        self._layout = layout
        self._form: DatasetFormat | None = None
        self._unknown: DataError | None = None
        try:
            self._form, self._columns = _layout_of(first, where, layout)
        except DataError as error:
            self._unknown = error  # that there are images is said first

    def convert(self, rows: Sequence[Row], numbers: Sequence[int], offset: int = 0) -> tuple[list[Sample], Refused]:
        """Samples of the rows that can be read, and what is wrong with the others.

        Args:
            rows: The rows, of one form; where the source does not say which, single rows may have another one.
            numbers: Number of each row in its source, as messages give it.
            offset: ``Sample.row`` is the number plus this.
        """
        refused = Refused(Media(set((self._layout.columns or {}).values())), self._unknown, total=len(rows))
        refused.media.look(rows, numbers)
        samples: list[Sample] = []
        if self._form is None:
            return samples, refused
        if self._layout.columns is not None:
            refused.columns.update(*(row.keys() for row in rows))
        for number, row in zip(numbers, rows, strict=True):
            try:
                with foreign(DataError, "it cannot be read", (RecursionError,)):
                    check_row(row)
                    form, columns = self._form_of(row, self._form)
                    samples.append(form.to_sample(row, offset + number, columns))
            except DataError as error:
                refused.problems.add(f"row {number}", error)
        return samples, refused

    def _form_of(self, row: Row, form: DatasetFormat) -> tuple[DatasetFormat, Columns]:
        return _form_of(row, form, self._where) if self._layout.is_empty() else (form, self._columns)

    def refuse(self, refused: Refused, *, whole: bool = True) -> None:
        """Raise what is wrong with rows.

        Args:
            refused: Of all parts.
            whole: They are all rows of the source: a column that none of them has does not exist.

        Raises:
            DataError: The form is unknown or ambiguous, a mapped column does not exist, or rows are damaged or hold
                more than text (all of them are counted, the first few shown).
        """
        refused.media.refuse(self._where, refused.total)
        if refused.unknown is not None:
            raise refused.unknown
        if whole and self._layout.columns is not None:
            _check_mapped_columns(refused.columns, self._columns, self._where)
        form = "" if self._form is None else self._form.name
        refused.problems.raise_if_any(
            f"{self._where}: COUNT of {refused.total:,} rows cannot be read as {form}:",
            "correct or remove these rows (row numbers start at 0)",
        )


def convert_rows(
    rows: Sequence[Row], where: str, *, layout: Layout, numbers: Sequence[int], offset: int = 0
) -> list[Sample]:
    """Turn all rows of a source into samples.

    Args:
        rows: The rows, of one form; where the source does not say which, single rows may have another one.
        where: Name of the source, for messages.
        layout: What the source says about their form.
        numbers: Number of each row in its source, as messages give it.
        offset: ``Sample.row`` is the number plus this.

    Raises:
        DataError: As :meth:`RowConverter.refuse`, or there are no rows.
    """
    if not rows:
        raise DataError(f"{where}: there are no rows")
    converter = RowConverter(rows[0], where, layout)
    samples, refused = converter.convert(rows, numbers, offset)
    converter.refuse(refused)
    return samples


def _form_of(row: Row, form: DatasetFormat, where: str) -> tuple[DatasetFormat, Columns]:
    """The form of one row, which may be another one than the first row's, also where columns have equal names.

    A subset that was selected from several sources holds such rows.
    """
    if not form.matches(_present(row), row):
        with suppress(DataError):  # the first row's form decides then, and reports what is wrong with the row
            form = recognise(row, where)
    return form, form.default_columns(row)


def _present(row: Row) -> set[str]:
    """The columns that a row has a value for: tables fill those of other rows with nulls."""
    return {name for name, value in row.items() if value is not None}


def _layout_of(first: Row, where: str, layout: Layout) -> tuple[DatasetFormat, Columns]:
    if layout.is_empty():
        form = recognise(first, where)
    else:
        form = registry().get("dataset_format", layout.formatting or "alpaca")()
    columns = form.default_columns(first)
    if layout.columns is not None:
        columns = _mapped(columns, COLUMN_KEYS, layout.columns, f"{where}: columns")
    if layout.tags is not None:
        columns = _mapped(columns, TAG_KEYS, layout.tags, f"{where}: tags")
    missing = [key for key in form.required if getattr(columns, key) is None]
    if missing:
        plain = " (rows of plain text, for pretraining, are not supported)" if missing == ["response"] else ""
        raise DataError(
            f"{where}: format {form.name!r} needs a mapping for {', '.join(missing)}{plain}", hint=SUPPORTED
        )
    return form, columns


def _mapped(columns: Columns, keys: tuple[str, ...], mapping: Mapping[str, str], what: str) -> Columns:
    """``columns`` with ``keys`` taken from ``mapping`` alone."""
    for key in mapping:
        if key not in keys:
            hint = nearest_hint(key, keys)
            raise DataError(f"{what} has an unknown key {key!r}; known: {', '.join(keys)}", hint=hint)
    return replace(columns, **{key: mapping.get(key) for key in keys})


def _check_mapped_columns(existing: set[str], columns: Columns, where: str) -> None:
    absent = sorted(columns.used() - existing)
    if absent:
        raise DataError(
            f"{where}: no row has the mapped column{'s' if len(absent) > 1 else ''} {', '.join(map(repr, absent))}; "
            f"columns: {', '.join(sorted(existing))}"
        )


def recognise(row: Row, where: str) -> DatasetFormat:
    """The one registered format whose columns ``row`` has.

    Raises:
        DataError: None or several match.
    """
    formats, broken = _all_formats()
    present = _present(row)
    matching = [form for form in formats if form.matches(present, row)]
    matching = matching or [form for form in formats if form.matches(set(row), row)]
    if len(matching) == 1:
        return matching[0]
    columns = ", ".join(map(str, row)) or "none"
    if matching:
        names = " and ".join(form.name for form in matching)
        raise DataError(
            f"{where}: the columns ({columns}) fit more than one format: {names}",
            hint="name one as `formatting` (in dataset_info.json, or as an argument)",
        )
    known = "\n".join([*(f"  {form.name}: {form.expects}" for form in formats), *broken])
    raise DataError(
        f"{where}: no format fits the columns ({columns}); known formats:\n{known}",
        hint=f"map the columns in a dataset_info.json (`formatting`, `columns`, `tags`); {SUPPORTED}",
    )


def _all_formats() -> tuple[list[DatasetFormat], list[str]]:
    """Every format that can be imported, and a line for every one that cannot: it must not break the others."""
    found = registry()
    formats: list[DatasetFormat] = []
    broken = []
    for name in found.names("dataset_format"):
        try:
            formats.append(found.get("dataset_format", name)())
        except PluginError as error:
            broken.append(f"  {name}: {error.message}")
    return formats, broken


def unique_ids(samples: Sequence[Sample]) -> list[Sample]:
    """``samples`` with ids that are all different: the second ``a`` becomes ``a#2``, the third ``a#3``."""
    taken = {sample.id for sample in samples}
    seen: dict[str, int] = {}
    result = []
    for sample in samples:
        seen[sample.id] = count = seen.get(sample.id, 0) + 1
        if count > 1:
            while (name := f"{sample.id}#{count}") in taken:
                count += 1
            seen[sample.id] = count
            taken.add(name)
            sample = replace(sample, id=name)
        result.append(sample)
    return result
