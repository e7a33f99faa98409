"""Paths that a configuration names: the working directory first, then the folder of the file that names them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dataflex.errors import ConfigError
from dataflex.utils.files import special_kind
from dataflex.utils.home import home_path
from dataflex.utils.messages import shown

LARGEST = 1 << 19
"""Bytes of a configuration file: a hundred times what we have seen, and seconds of parsing."""


def candidates(value: str | Path, base: Path | None) -> list[Path]:
    """Where a path may be found, first the place that wins."""
    path = home_path(value)
    folders = [Path.cwd()] if base is None else [Path.cwd(), base.absolute()]
    return list(dict.fromkeys(folder / path for folder in folders))


def resolve_path(value: str | Path, base: Path | None = None) -> Path:
    """The existing file or folder that ``value`` names, absolute.

    Args:
        value: A path; a relative one is looked up in the working directory, then in ``base``.
        base: Folder of the configuration that names the path.

    Raises:
        ConfigError: It is in neither place; both are named.
    """
    tried = candidates(value, base)
    for path in tried:
        if _exists(path):
            return path
    raise ConfigError(f"{str(value)!r} does not exist; looked for {' and '.join(str(path) for path in tried)}")


def locate(value: str, base: Path | None = None) -> str:
    """The absolute path of a local file or folder, or ``value`` itself if it can be a hub id.

    Raises:
        ConfigError: ``value`` can only be a path (it starts with ``.``, ``~`` or ``/``) and does not exist.
    """
    if value.startswith((".", "~")) or Path(value).is_absolute():
        return str(resolve_path(value, base))
    return next((str(path) for path in candidates(value, base) if _exists(path)), value)


def absolute_if_found(value: str, base: Path | None, *, files_only: bool = False) -> str:
    """The absolute path of a local file or folder, or ``value`` as it is where there is none."""
    for path in candidates(value, base):
        if _exists(path) and (path.is_file() or not files_only):
            return str(path)
    return value


def read_text(path: Path) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: It does not exist, is no plain file or far too large for one, cannot be read or is not UTF-8.
    """
    if _exists(path) and not path.is_file():
        raise ConfigError(f"{path} is a {special_kind(path)}, expected a file")
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise ConfigError(f"{path} has {size:,} bytes, a configuration has at most {LARGEST:,}: is it a data file?")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist; looked for {path.absolute()}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}") from error


def read_json_object(value: str | Path, base: Path | None = None) -> dict[str, Any]:
    """The content of a JSON file that holds an object.

    Args:
        value: Path of the file.
        base: Folder of the configuration that names it.

    Raises:
        ConfigError: The file is missing or no JSON object.
    """
    path = resolve_path(value, base)
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {shown(found)}")
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or a NUL inside: no such file
        return False
