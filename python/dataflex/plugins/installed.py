"""Whether a plugin may be installed, without the machinery that loads one, whose import takes longer than this look."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_METADATA = ("dist-info", "egg-info")
"""Ends of the names of folders with metadata, in any case: an egg on the path has ``EGG-INFO`` itself."""


def may_have_plugins() -> bool:
    """Whether any distribution on ``sys.path`` names the entry-point group ``dataflex``.

    Archives on the path are not opened: they may hold a plugin.
    """
    return any(_has_group(Path(folder or ".")) for folder in dict.fromkeys(sys.path))


def _has_group(folder: Path) -> bool:
    if folder.is_file():
        return True
    try:
        with os.scandir(folder) as entries:
            names = [entry.path for entry in entries if entry.name.lower().endswith(_METADATA)]
    except OSError:  # a folder of the path that does not exist, or may not be read, holds nothing to load
        return False
    return any(_names_group(Path(name, "entry_points.txt")) for name in names)


def _names_group(file: Path) -> bool:
    try:
        lines = file.read_bytes().splitlines()
    except OSError:  # most distributions have no entry points
        return False
    return any(line.strip() == b"[dataflex]" for line in lines)
