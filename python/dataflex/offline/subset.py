"""Files of an offline selection: the chosen rows, the scores of all rows, and a card that says where they come from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.data.sources import OriginalRow
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
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for row, note in zip(rows, notes, strict=True):
            file.write(_line(row, note) + "\n")


def _line(row: OriginalRow, note: Mapping[str, Any]) -> str:
    if row.text is not None and NOTES_KEY not in row.value and row.value:
        # The row's own text, so that numbers and escapes stay as they were written.
        return f"{row.text[:-1].rstrip()}, {json.dumps(NOTES_KEY)}: {json.dumps(note, allow_nan=False)}}}"
    values = {**row.value, NOTES_KEY: note}
    try:
        text = json.dumps(values, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can express
        return json.dumps(values)
    except TypeError as error:
        column, value = next((key, value) for key, value in row.value.items() if not _fits_json(value))
        raise DataError(
            f"{row.where}: row {row.number}, column {column!r}: {error}, got {value!r}",
            hint="convert the column to text or numbers, or use to_dataset()",
        ) from error
    return text


def _fits_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
