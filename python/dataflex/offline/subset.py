"""Files of an offline selection: the chosen rows, the scores of all rows, and a card that says where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.data.plain import plain
from dataflex.data.readers import MAX_REPORTED
from dataflex.data.sample_reader import OriginalRow
from dataflex.errors import DataError, SelectionError
from dataflex.utils.files import atomic_path

NOTES_KEY = "_dataflex"


def refuse_existing(paths: Iterable[Path], *, overwrite: bool) -> None:
    """Raise SelectionError, naming them, if some of the files are there and must not be replaced."""
    existing = [str(path) for path in paths if path.exists()]
    if existing and not overwrite:
        raise SelectionError(f"{', '.join(existing)} would be overwritten", hint="name another file, or --overwrite")


def write_rows(
    path: Path, rows: Sequence[OriginalRow], notes: Iterable[Mapping[str, Any]], *, overwrite: bool = False
) -> None:
    """Write one line a row: the row's own JSON with a last key ``_dataflex``.

    Values that JSON lacks, dates for example, are written in the form that :func:`dataflex.data.plain.plain` gives
    them.

    Args:
        path: The file.
        rows: The rows in their order.
        notes: What belongs under ``_dataflex``, for each row.
        overwrite: Replace the file if it is there.

    Raises:
        SelectionError: The file is there.
        DataError: A value has no form in JSON.
    """
    refuse_existing([path], overwrite=overwrite)
    lines = _lines(rows, notes)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(line + "\n" for line in lines)


def _lines(rows: Sequence[OriginalRow], notes: Iterable[Mapping[str, Any]]) -> list[str]:
    """The rows' JSON, each with its note."""
    lines, problems = [], []
    for row, note in zip(rows, notes, strict=True):
        try:
            lines.append(_line(row, note))
        except DataError as error:
            problems.append(f"  {row.where}, row {row.number}: {error.message}")
    if problems:
        more = [f"  ... and {len(problems) - MAX_REPORTED} more"] if len(problems) > MAX_REPORTED else []
        raise DataError(
            "\n".join([f"{len(problems)} rows cannot be written as JSON:", *problems[:MAX_REPORTED], *more]),
            hint="convert the columns to text or numbers, or use to_dataset()",
        )
    return lines


def _line(row: OriginalRow, note: Mapping[str, Any]) -> str:
    if row.text is not None and NOTES_KEY not in row.value and row.value:
        # The row's own text, so that numbers and escapes stay as they were written.
        return f"{row.text[:-1].rstrip()}, {json.dumps(NOTES_KEY)}: {json.dumps(note, allow_nan=False)}}}"
    values = {column: _plain(value, column) for column, value in row.value.items()} | {NOTES_KEY: note}
    text = json.dumps(values, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can express
        return json.dumps(values, allow_nan=False)
    return text


def _plain(value: Any, column: str) -> Any:
    try:
        return plain(value)
    except DataError as error:
        raise DataError(f"column {column!r}: {error.message}") from error
