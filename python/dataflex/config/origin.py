"""Where the values of a configuration come from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dataflex.config.document import KeyPath


@dataclass(frozen=True)
class Origin:
    """Where a configuration was written.

    Attributes:
        name: The file as the user named it; empty for a configuration made in Python.
        folder: The folder of the file, which relative paths may refer to.
        places: Per key path, the words that name its position: ``file:line`` or ``override key=value``.
        ignored: Known keys of LLaMA-Factory that were given and have no effect, with what to say about them.
        notes: Per key path, what to say about a value that YAML reads otherwise than it looks.
    """

    name: str = ""
    folder: Path | None = None
    places: Mapping[KeyPath, str] = field(default_factory=dict)
    ignored: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[KeyPath, str] = field(default_factory=dict)

    def place(self, *path: str | int) -> str:
        """The position of a key path, or of the closest container around it that has one, else the file's name."""
        return closest_place(self.places, path) or self.name

    def at(self, text: str, *path: str | int) -> str:
        """``text`` behind the position of a key path, where there is one."""
        place = self.place(*path)
        return f"{place}: {text}" if place else text

    def about(self, key: str, text: str) -> str:
        """A message about a key (dotted below a mapping), behind the key's position."""
        return self.at(f"{key}: {text}", *key.split("."))

    def in_order(self, lines: Iterable[str]) -> list[str]:
        """Lines about the file by their position in it, then all others as they came."""

        def line_number(text: str) -> float:
            found = re.match(re.escape(self.name) + r":(\d+): ", text)
            return int(found[1]) if found else math.inf

        return sorted(lines, key=line_number)


def closest_place(places: Mapping[KeyPath, str], path: KeyPath) -> str | None:
    """The position of ``path`` or of its nearest parent in ``places``."""
    for end in range(len(path), 0, -1):
        if path[:end] in places:
            return places[path[:end]]
    return None
