"""Rows from files: JSON, JSON Lines and Parquet.

JSON is read with the standard library, so that columns of mixed types survive as they are.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataflex.errors import DataError
from dataflex.utils.files import special_kind
from dataflex.utils.foreign import FILES, JSON, arrow_errors, explain, foreign

logger = logging.getLogger(__name__)

MAX_REPORTED = 5


def read_rows(path: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows of a file, or of the data files of a folder in the order of their names.

    Args:
        path: The file or folder.
        split: Of a folder whose files are named after splits, those of this one are read.

    Raises:
        DataError: Another kind of file, no rows, content that cannot be parsed (with ``file:line``), or a folder whose
            files are of several splits, none of them this one, or of none.
    """
    if path.is_dir():
        return [row for file in chosen_files(path, split) for row in read_rows(file)]
    check_file(path)
    rows = READERS[path.suffix](path)
    if not rows:
        raise DataError(f"{path}: there are no rows")
    return rows


def check_file(path: Path) -> None:
    """Raise DataError for what is no file, or one of another kind."""
    if path.suffix not in READERS:
        raise DataError(f"{path}: cannot read a {path.suffix or 'suffixless'!r} file, expected {_kinds()}")
    if not path.is_file():
        raise DataError(f"{path} is a {special_kind(path)}, expected a file", hint="write what it gives into a file")


def chosen_files(folder: Path, split: str) -> list[Path]:
    """:func:`data_files`; those that belong to other splits are named in a warning."""
    files = data_files(folder, split)
    if left := [file.name for file in data_files(folder) if file not in files]:
        logger.warning("%s: read is the split %s; left out: %s", folder, split, ", ".join(left))
    return files


def json_line(line: bytes) -> dict[str, Any] | None:
    """The object in a line of a JSON Lines file; None if there is none, which reading the whole file explains."""
    try:
        row = json.loads(line.decode())
    except (*JSON, *FILES):
        return None
    return row if isinstance(row, dict) else None


def data_files(folder: Path, split: str | None = None) -> list[Path]:
    """The data files of a folder, or those of a split if its files are named after splits, in the order of their names.

    Names of splits are recognised as ``datasets`` does it (``train``, ``valid``, ``dev-0``, ``my_test``).

    Raises:
        DataError: There are none, or it is not clear which.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix in READERS)
    if not files:
        raise DataError(f"{folder}: no {_kinds()} file in this folder")
    splits = {file: _split_of(file) for file in files} if split and len(files) > 1 else {}
    if len(set(splits.values())) < 2:
        return files
    chosen = [file for file in files if splits[file] == split]
    if not chosen or None in splits.values():
        listed = "".join(f"\n  {file.name}: {splits[file] or 'of no split'}" for file in files)
        raise DataError(
            f"{folder}: the files are of several splits, and it is not clear which are meant by {split!r}:{listed}",
            hint="name the files (a list), or move the others to another folder",
        )
    return chosen


def _split_of(file: Path) -> str | None:
    """The split that a file's name tells, None if it tells none or several."""
    from datasets.data_files import SPLIT_KEYWORDS

    words = set(re.split(r"[^a-z]+", file.stem.lower()))
    found = {str(split) for split, keywords in SPLIT_KEYWORDS.items() if words & set(keywords)}
    return found.pop() if len(found) == 1 else None


def _read_json(path: Path) -> list[dict[str, Any]]:
    text = _text(path)
    with foreign(DataError, f"cannot read {path}", JSON):
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            hint = None
            if error.msg == "Extra data":
                hint = "a file with one object a line is JSON Lines: give it the suffix .jsonl"
            raise DataError(
                f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})", hint=hint
            ) from error
    if not isinstance(value, list):
        raise DataError(f"{path}: holds a JSON {_kind(value)}, expected a list of objects")
    wrong = [i for i, row in enumerate(value) if not isinstance(row, dict)]
    if wrong:
        raise DataError(f"{path}: row {wrong[0]} is a JSON {_kind(value[wrong[0]])}, expected an object")
    return value


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    problems = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"{path}:{number}: not valid JSON: {error.msg} (column {error.colno})")
            continue
        except JSON as error:
            problems.append(f"{path}:{number}: {explain(error)[0]}")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            problems.append(f"{path}:{number}: a JSON {_kind(row)}, expected an object")
    if problems:
        more = [f"... and {len(problems) - MAX_REPORTED} more lines"] if len(problems) > MAX_REPORTED else []
        raise DataError("\n".join(problems[:MAX_REPORTED] + more))
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    with foreign(DataError, f"{path}: not a readable Parquet file", arrow_errors()):
        rows = pq.read_table(path).to_pylist()
    return arrow_rows(rows)


def arrow_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of an Arrow table without the nulls inside their values.

    Arrow gives all objects of a column the same keys and fills the absent ones with null; left in, they would show up
    in function definitions and calls.
    """
    return [{name: _without_nulls(value) for name, value in row.items()} for row in rows]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _lines(path: Path) -> list[str]:
    # Only line feeds end a line: a JSON string may hold other Unicode line separators.
    return _text(path).split("\n")


def _text(path: Path) -> str:
    with foreign(DataError, f"cannot read {path}", FILES), path.open(encoding="utf-8-sig", newline="") as file:
        return file.read()


def _kinds() -> str:
    return ", ".join(READERS)


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
