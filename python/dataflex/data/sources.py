"""Where rows come from: files, folders, a ``dataset_info.json``, the Hugging Face hub, or Python objects.

A name is looked up in this order: an entry of ``dataset_dir/dataset_info.json``; a file or folder (in the working
directory, then in each base folder, then in ``dataset_dir``); a hub id (``owner/name``). No code of a dataset is ever
run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from dataflex.data.hints import nearest_hint
from dataflex.data.readers import READERS
from dataflex.data.registry_file import FILE_NAME, Entry, parse_entry, read_registry
from dataflex.data.row_files import ArrowRows, ListedRows, SourceRows, file_rows
from dataflex.data.rows import Layout
from dataflex.data.sample_reader import OriginalRow, SampleReader, Source
from dataflex.errors import DataError
from dataflex.types import Sample
from dataflex.utils.home import home_path

if TYPE_CHECKING:
    from datasets import Dataset

Spec: TypeAlias = "str | Path | Sequence[str | Path] | Sequence[Mapping[str, Any]] | Dataset"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class _Lookup:
    """Where names are looked up."""

    dataset_dir: Path | None
    base_dirs: tuple[Path, ...]
    split: str
    formatting: str | None


def load_samples(
    spec: Spec,
    *,
    dataset_dir: str | Path | None = None,
    split: str = "train",
    max_samples: int | None = None,
    base_dirs: Sequence[str | Path] = (),
    formatting: str | None = None,
) -> list[Sample]:
    """Read samples.

    Several names (a list, or one text with commas) are concatenated: row numbers go on from one to the next, over
    all rows of each source. Ids that occur again get a suffix (``a``, ``a#2``), so that all ids are different.

    Args:
        spec: A path (.json, .jsonl, .parquet, a folder of them, or a folder that ``Dataset.save_to_disk`` wrote), a
            name in ``dataset_info.json``, a hub id, several of these, a list of rows, or a ``datasets.Dataset``.
        dataset_dir: Folder of ``dataset_info.json``; a relative one is looked up like any path.
        split: Split of hub datasets, and of folders whose files are named after splits, whose entry names none.
        max_samples: Take the first so many rows of each source.
        base_dirs: Where relative paths are looked up after the working directory.
        formatting: Name of the dataset format, for sources whose entry names none; None recognises it.

    Raises:
        DataError: The source does not exist, cannot be read, or has damaged rows.
    """
    reader = open_samples(
        spec,
        dataset_dir=dataset_dir,
        split=split,
        max_samples=max_samples,
        base_dirs=base_dirs,
        formatting=formatting,
    )
    return list(reader)


def open_samples(
    spec: Spec,
    *,
    dataset_dir: str | Path | None = None,
    split: str = "train",
    max_samples: int | None = None,
    base_dirs: Sequence[str | Path] = (),
    formatting: str | None = None,
) -> SampleReader:
    """Samples that are read when they are asked for; arguments and errors as those of :func:`load_samples`.

    Raises:
        DataError: The source does not exist; what is wrong with rows shows when they are read.
    """
    if max_samples is not None and max_samples < 1:
        raise DataError(f"max_samples is {max_samples}, expected a positive number")
    return SampleReader(_open(spec, _lookup(dataset_dir, base_dirs, split, formatting)), max_samples)


def original_rows(
    spec: Spec,
    rows: Sequence[int],
    *,
    dataset_dir: str | Path | None = None,
    split: str = "train",
    base_dirs: Sequence[str | Path] = (),
) -> list[OriginalRow]:
    """Rows by their ``Sample.row``, as they stand in their sources.

    A row that only the mapping of its entry in ``dataset_info.json`` makes readable becomes one of messages.

    Args:
        spec: What :func:`load_samples` was given.
        rows: Row numbers over all sources, in the order that is wanted.
        dataset_dir: As for :func:`load_samples`.
        split: As for :func:`load_samples`.
        base_dirs: As for :func:`load_samples`.

    Raises:
        DataError: The source cannot be read, or has fewer rows.
    """
    return open_samples(spec, dataset_dir=dataset_dir, split=split, base_dirs=base_dirs).originals(rows)


def _lookup(
    dataset_dir: str | Path | None, base_dirs: Sequence[str | Path], split: str, formatting: str | None
) -> _Lookup:
    bases = tuple(Path(base) for base in base_dirs)
    wanted = None if dataset_dir is None else home_path(dataset_dir)
    folder = None if wanted is None else _find(wanted, bases) or wanted
    return _Lookup(folder, bases, split, formatting)


def _open(spec: Spec, lookup: _Lookup) -> list[Source]:
    if isinstance(spec, (str, Path)):
        return _open_names(_split(str(home_path(spec)) if str(spec).startswith("~") else str(spec), lookup), lookup)
    if isinstance(spec, Sequence):
        if not spec:
            raise DataError("the dataset is an empty list")
        names = [part for part in spec if isinstance(part, (str, Path))]
        if len(names) == len(spec):
            return _open_names([str(name) for name in names], lookup)
        rows = [part for part in spec if isinstance(part, Mapping)]
        if len(rows) == len(spec):
            return [Source("list of rows", ListedRows(rows), Layout(lookup.formatting))]
        raise DataError("the dataset is a list of mixed things, expected only names or only rows (mappings)")
    return [Source("datasets.Dataset", ArrowRows(_one_dataset(spec)), Layout(lookup.formatting))]


def _split(text: str, lookup: _Lookup) -> list[str]:
    if not text.strip():
        raise DataError("the name of the dataset is empty")
    if "," not in text or _find(Path(text), lookup.base_dirs) is not None:
        return [text]
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise DataError(f"dataset {text!r} has an empty name between commas")
    return names


def _open_names(names: Sequence[str], lookup: _Lookup) -> list[Source]:
    return [replace(_open_name(name, lookup), name=name) for name in names]


def _open_name(name: str, lookup: _Lookup) -> Source:
    entries = read_registry(lookup.dataset_dir) if lookup.dataset_dir else {}
    if lookup.dataset_dir and name in entries:
        return _open_entry(parse_entry(lookup.dataset_dir, name, entries[name]), lookup)
    places = (*lookup.base_dirs, *([lookup.dataset_dir] if lookup.dataset_dir else []))
    path = _find(home_path(name), places)
    if path is not None:
        return Source(str(path), _path_rows(path, lookup.split), Layout(lookup.formatting))
    if _HUB_ID.fullmatch(name) and Path(name).suffix not in READERS:
        rows = ArrowRows(_hub_rows(name, split=lookup.split))
        return Source(f"hub dataset {name!r}", rows, Layout(lookup.formatting))
    raise _not_found(name, places, list(entries), lookup.dataset_dir)


def _not_found(name: str, places: Sequence[Path], entries: list[str], dataset_dir: Path | None) -> DataError:
    tried = [str(Path(name).absolute()), *(str((place / name).absolute()) for place in places)]
    lines = [f"dataset {name!r} was not found; tried", *(f"  {place}" for place in dict.fromkeys(tried))]
    if dataset_dir is not None:
        registry = (dataset_dir / FILE_NAME).absolute()
        lines.append(f"  {registry} ({f'{len(entries)} entries' if entries else 'does not exist or is empty'})")
    hint = nearest_hint(name, entries) or "name a file, an entry of dataset_info.json or a hub id (owner/name)"
    return DataError("\n".join(lines), hint=hint)


def _open_entry(entry: Entry, lookup: _Lookup) -> Source:
    layout = entry.layout
    rows: SourceRows
    if layout.is_empty():
        layout = Layout(lookup.formatting)
    if entry.hub_id is not None:
        split = entry.split or lookup.split
        rows = ArrowRows(_hub_rows(entry.hub_id, split=split, subset=entry.subset, folder=entry.folder))
    else:
        assert lookup.dataset_dir is not None
        assert entry.file_name is not None
        path = lookup.dataset_dir / entry.file_name
        if not path.exists():
            raise DataError(f"{entry.where}: {path} does not exist")
        rows = _path_rows(path, entry.split or lookup.split)
    return Source(entry.where, rows, layout, drawn=entry.num_samples)


def _find(path: Path, base_dirs: Sequence[Path]) -> Path | None:
    """``path`` where it exists: in the working directory, else below the first base folder that has it."""
    candidates = [path, *(base / path for base in base_dirs)]
    return next((candidate for candidate in candidates if candidate.exists()), None)


def _path_rows(path: Path, split: str) -> SourceRows:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        from datasets import load_from_disk

        return ArrowRows(_one_dataset(load_from_disk(str(path)), split))
    return file_rows(path, split)


def _one_dataset(dataset: Any, split: str | None = None) -> Dataset:
    import datasets

    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise DataError(
                f"got a DatasetDict with the splits {', '.join(map(str, dataset))}, expected one dataset",
                hint="pass one of its splits",
            )
        dataset = dataset[split]
    if not isinstance(dataset, datasets.Dataset):
        raise DataError(f"a dataset cannot be a {type(dataset).__name__}, expected names, rows or a datasets.Dataset")
    return dataset


def _hub_rows(hub_id: str, *, split: str, subset: str | None = None, folder: str | None = None) -> Dataset:
    import datasets

    offline = datasets.config.HF_HUB_OFFLINE
    if not offline and os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DataError(
            f"hub dataset {hub_id!r}: HF_HUB_OFFLINE was set after huggingface_hub was imported, which ignores it then",
            hint="set it before Python starts",
        )
    try:
        dataset = datasets.load_dataset(hub_id, name=subset, data_dir=folder, split=split)
    except Exception as error:
        # datasets lets errors of its own, of huggingface_hub, of the HTTP client and built-in ones through.
        hint = "HF_HUB_OFFLINE is set: only datasets in the local cache can be loaded" if offline else None
        raise DataError(
            f"hub dataset {hub_id!r} cannot be loaded: {type(error).__name__}: {error}", hint=hint
        ) from error
    return _one_dataset(dataset)
