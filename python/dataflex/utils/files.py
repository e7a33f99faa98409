"""Files that survive a kill: written aside, flushed to disk, renamed into place."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataflex.errors import DataflexError
from dataflex.utils.foreign import Kinds, foreign

_ASIDE = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}\.(?P<kind>tmp|old)")
"""Names of temporary files and folders, as tempfile makes them."""


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is fsynced and renamed to ``path``.

    A kill at any moment leaves either the old file or the new one, never a part. On an exception the temporary
    file is removed and ``path`` is untouched.

    Raises:
        DataflexError: It cannot be written: the disk is full, say.
    """
    target = Path(path)
    with foreign(DataflexError, f"cannot write {target}", (OSError,)):
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            fsync(temporary)
            temporary.replace(target)
            fsync(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; on success its files are fsynced and it is renamed to ``path``.

    An existing directory at ``path`` is moved aside first and removed last.

    Raises:
        DataflexError: It cannot be written: the disk is full, say.
    """
    target = Path(path)
    with foreign(DataflexError, f"cannot write {target}", _writing_errors()):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
        try:
            yield temporary
            _settle(temporary)
            replaced = None
            if target.exists():
                replaced = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old"))
                target.replace(replaced)
            temporary.replace(target)
            fsync(target.parent)
            if replaced is not None:
                shutil.rmtree(replaced)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _writing_errors() -> Kinds:
    """What the packages raise that write models; tokenizers raises bare exceptions."""
    from safetensors import SafetensorError

    return OSError, SafetensorError, Exception


def _settle(folder: Path) -> None:
    """Give a temporary folder the usual permissions and flush all of it to the disk."""
    folder.chmod(0o777 & ~_umask())
    for file in sorted(folder.rglob("*")):
        if file.is_file():  # safetensors makes files that nobody else may read
            file.chmod(0o666 & ~_umask())
        fsync(file)
    fsync(folder)


def sweep(folder: Path, *, inside: Iterable[str] = (), only: Container[str] | None = None) -> list[Path]:
    """Remove the temporary files and folders that writers in a folder left behind when they were killed.

    What was moved aside (``.old``) and has no successor goes back to its place. No other process may be writing there:
    the caller holds the folder's lock.

    Args:
        folder: Where to look.
        inside: Names of folders in it that are looked through whole.
        only: Names of the files and folders whose temporaries are meant; None: of any.

    Returns:
        What was removed.
    """
    removed = []
    whole = [path for name in inside for path in sorted((folder / name).rglob(".*")) if path.exists()]
    for path in [*(sorted(folder.iterdir()) if folder.is_dir() else ()), *whole]:
        found = _ASIDE.fullmatch(path.name)
        if found is None or not path.exists() or (only is not None and found["name"] not in only):
            continue
        if found["kind"] == "old" and not path.with_name(found["name"]).exists():
            path.replace(path.with_name(found["name"]))
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        removed.append(path)
    return removed


def remove_folder(path: Path) -> None:
    """Remove a folder that is whole at its place, or gone: it is renamed aside first, and then removed.

    What a kill leaves is a temporary folder, not half of what was there. Of a link to a folder, the link is removed.
    """
    if path.is_symlink():
        path.unlink()
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    path.replace(aside)
    shutil.rmtree(aside)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8 atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON atomically; NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def differences(found: Any, expected: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One text a field in which facts found on disk differ from those of now (both JSON-able).

    Args:
        found: What was read.
        expected: What it should be.
        prefix: Stands before the fields' names; ends in a dot.
    """
    if not isinstance(found, dict):
        return [f"{prefix.rstrip('.') or 'the manifest'} is damaged"]
    different = []
    for key in sorted({*found, *expected}):
        old, new = found.get(key), expected.get(key)
        if isinstance(new, Mapping):
            different += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            different.append(f"{prefix}{key} differs: {old!r} on disk, {new!r} now")
    return different


def fsync(path: Path) -> None:
    """Flush a file's or a directory's data to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def special_kind(path: Path) -> str:
    """What a path that is no plain file is, in words: reading a pipe waits, reading a device may never end."""
    kinds = {"folder": path.is_dir, "pipe": path.is_fifo, "socket": path.is_socket}
    return next((name for name, matches in kinds.items() if matches()), "device")
