"""``dataset_info.json``: LLaMA-Factory's registry of datasets, one entry a name.

What an entry does not say has LLaMA-Factory's default; once it has ``columns`` (or ``tags``), those that it leaves
out do not exist. An entry without ``formatting``, ``columns`` and ``tags`` is recognised by the columns of its rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.data.hints import SUPPORTED, nearest_hint
from dataflex.data.rows import Layout
from dataflex.errors import DataError
from dataflex.utils.foreign import JSON, foreign

FILE_NAME = "dataset_info.json"
UNSUPPORTED_COLUMNS = {
    "chosen": "preference pairs",
    "rejected": "preference pairs",
    "kto_tag": "KTO feedback",
    "images": "images",
    "videos": "videos",
    "audios": "audio",
}
UNSUPPORTED_SOURCES = {
    "ms_hub_url": "ModelScope",
    "om_hub_url": "Modelers",
    "script_url": "a loading script",
    "cloud_file_name": "cloud storage",
}
ENTRY_KEYS = (
    "file_name",
    "hf_hub_url",
    *UNSUPPORTED_SOURCES,
    "subset",
    "split",
    "folder",
    "num_samples",
    "formatting",
    "ranking",
    "columns",
    "tags",
    "file_sha1",
)


@dataclass(frozen=True)
class Entry:
    """One dataset of the registry.

    Attributes:
        where: The registry's path and the entry's name, for messages.
        file_name: File or folder, relative to the registry's folder.
        hub_id: Hugging Face dataset id; it goes before ``file_name``.
        subset: Configuration of the hub dataset.
        folder: Folder inside the hub dataset.
        split: Split to load; None leaves the choice to the caller.
        num_samples: How many rows to draw.
        layout: The form of its rows.
    """

    where: str
    file_name: str | None
    hub_id: str | None
    subset: str | None
    folder: str | None
    split: str | None
    num_samples: int | None
    layout: Layout


def read_registry(folder: Path) -> dict[str, Any]:
    """The entries in ``folder``, not yet parsed; empty if there is no registry.

    Raises:
        DataError: The file cannot be read, or is not a JSON object.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return {}
    with foreign(DataError, f"cannot read {path}", JSON):
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(entries, dict):
        raise DataError(f"{path}: expected an object with one entry a dataset")
    return entries


def parse_entry(folder: Path, name: str, entry: Any) -> Entry:
    """Check one entry.

    Raises:
        DataError: Unknown keys, or a kind of data or source that is not supported.
    """
    where = f"{folder / FILE_NAME}: {name!r}"
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected an object, got {entry!r}")
    for key in entry:
        if key not in ENTRY_KEYS:
            raise DataError(f"{where}: unknown key {key!r}", hint=nearest_hint(key, ENTRY_KEYS))
    columns = _mapping(entry, "columns", where)
    _check_supported(entry, columns or {}, where)
    num_samples = entry.get("num_samples")
    if num_samples is not None and (not isinstance(num_samples, int) or num_samples < 1):
        raise DataError(f"{where}: num_samples is {num_samples!r}, expected a positive number")
    return Entry(
        where=where,
        file_name=_text(entry, "file_name", where),
        hub_id=_text(entry, "hf_hub_url", where),
        subset=_text(entry, "subset", where),
        folder=_text(entry, "folder", where),
        split=_text(entry, "split", where),
        num_samples=num_samples,
        layout=Layout(_text(entry, "formatting", where), columns, _mapping(entry, "tags", where)),
    )


def _check_supported(entry: Mapping[str, Any], columns: Mapping[str, str], where: str) -> None:
    reasons = {what for key, what in UNSUPPORTED_COLUMNS.items() if columns.get(key)}
    if entry.get("ranking"):
        reasons.add("preference pairs")
    if reasons:
        raise DataError(f"{where}: {' and '.join(sorted(reasons))} cannot be trained on", hint=SUPPORTED)
    if not entry.get("file_name") and not entry.get("hf_hub_url"):
        elsewhere = [what for key, what in UNSUPPORTED_SOURCES.items() if entry.get(key)]
        reason = f"comes from {' or '.join(elsewhere)} only" if elsewhere else "names no source"
        raise DataError(f"{where}: {reason}", hint="give the entry a file_name or an hf_hub_url")


def _text(entry: Mapping[str, Any], key: str, where: str) -> str | None:
    value = entry.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {key} is {value!r}, expected text")
    return value


def _mapping(entry: Mapping[str, Any], key: str, where: str) -> dict[str, str] | None:
    value = entry.get(key)
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value.values() if name is not None):
        raise DataError(f"{where}: {key} is {value!r}, expected an object of names")
    return {name: column for name, column in value.items() if column is not None}
