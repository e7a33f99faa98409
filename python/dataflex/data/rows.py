"""Rows of one source turned into samples: which format, which columns, and every bad row reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dataflex.data.formats import COLUMN_KEYS, TAG_KEYS, Columns, DatasetFormat, Row
from dataflex.data.hints import SUPPORTED, nearest_hint
from dataflex.errors import DataError, PluginError
from dataflex.plugins.registry import registry
from dataflex.types import Sample

MAX_REPORTED = 5
MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")


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
class _Problems:
    where: str
    lines: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, row: int, message: str) -> None:
        self.count += 1
        if len(self.lines) < MAX_REPORTED:
            self.lines.append(f"  row {row}: {message}")

    def raise_if_any(self, total: int, form: str) -> None:
        if not self.count:
            return
        more = [f"  ... and {self.count - len(self.lines)} more"] if self.count > len(self.lines) else []
        head = f"{self.where}: {self.count} of {total} rows cannot be read as {form}:"
        raise DataError(
            "\n".join([head, *self.lines, *more]), hint="correct or remove these rows (row numbers start at 0)"
        )


def convert_rows(
    rows: Sequence[Row], where: str, *, layout: Layout, numbers: Sequence[int], offset: int = 0
) -> list[Sample]:
    """Turn rows into samples.

    Args:
        rows: The rows, of one form; where the source does not say which, single rows may have another one.
        where: Name of the source, for messages.
        layout: What the source says about their form.
        numbers: Number of each row in its source, as messages give it.
        offset: ``Sample.row`` is the number plus this.

    Raises:
        DataError: The form is unknown, ambiguous or unsupported, a mapped column does not exist, or rows are damaged
            (all of them are counted, the first few shown).
    """
    if not rows:
        raise DataError(f"{where}: there are no rows")
    form, columns = _layout_of(rows, where, layout)
    others = _other_forms(rows, form, where) if layout.is_empty() else {}
    problems = _Problems(where)
    samples = []
    for number, row in zip(numbers, rows, strict=True):
        own, own_columns = others.get(frozenset(row), (form, columns))
        try:
            samples.append(own.to_sample(row, offset + number, own_columns))
        except DataError as error:
            problems.add(number, error.message)
    problems.raise_if_any(len(rows), form.name)
    return samples


def _other_forms(
    rows: Sequence[Row], form: DatasetFormat, where: str
) -> dict[frozenset[str], tuple[DatasetFormat, Columns]]:
    """Forms of rows, by their columns, that are recognised as another one than the first row's.

    A subset that was selected from several sources holds such rows.
    """
    examples = {frozenset(row): row for row in rows}
    found = {}
    for columns, row in examples.items():
        try:
            other = recognise(row, where)
        except DataError:
            continue  # the first row's form decides, and reports what is wrong with the row
        if other.name != form.name:
            found[columns] = (other, other.default_columns(row))
    return found


def _layout_of(rows: Sequence[Row], where: str, layout: Layout) -> tuple[DatasetFormat, Columns]:
    if layout.is_empty():
        form = recognise(rows[0], where)
    else:
        form = registry().get("dataset_format", layout.formatting or "alpaca")()
    columns = form.default_columns(rows[0])
    if layout.columns is not None:
        columns = _mapped(columns, COLUMN_KEYS, layout.columns, f"{where}: columns")
        _check_mapped_columns(rows, columns, where)
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


def _check_mapped_columns(rows: Sequence[Row], columns: Columns, where: str) -> None:
    existing: set[str] = set().union(*(row.keys() for row in rows))
    absent = sorted(columns.used() - existing)
    if absent:
        raise DataError(
            f"{where}: no row has the mapped column{'s' if len(absent) > 1 else ''} {', '.join(map(repr, absent))}; "
            f"columns: {', '.join(sorted(existing))}"
        )


def recognise(row: Row, where: str) -> DatasetFormat:
    """The one registered format whose columns ``row`` has.

    Raises:
        DataError: None or several match, or the row carries images, videos or audio.
    """
    media = [name for name in MEDIA_COLUMNS if row.get(name)]
    if media:
        raise DataError(f"{where}: rows have {', '.join(media)}; only text is supported", hint=SUPPORTED)
    formats, broken = _all_formats()
    matching = [form for form in formats if form.matches(set(row), row)]
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
