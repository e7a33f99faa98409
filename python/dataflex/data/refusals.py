"""What no row may hold, whatever its form: images, sound and film; text that no encoding can write."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dataflex.data.hints import SUPPORTED
from dataflex.data.problems import Problems
from dataflex.errors import DataError

MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Media:
    """Rows with images, videos or audio: their text alone would be trained on.

    Attributes:
        used: Columns that are mapped to a part of the conversation, whatever they are called.
    """

    used: Collection[str] = ()
    _problems: Problems = field(default_factory=Problems)
    _found: set[str] = field(default_factory=set)

    def look(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> None:
        """Note the rows that have such a column that is not empty, each by its number in the source."""
        media = [name for name in MEDIA_COLUMNS if name not in self.used]
        for number, row in zip(numbers, rows, strict=True):
            names = [name for name in media if not _is_empty(row.get(name))]
            if names:
                self._problems.add(f"row {number}", DataError(f"has {', '.join(names)}"))
                self._found.update(names)

    def add(self, other: Media) -> None:
        """Add what was noted of rows further on."""
        self._problems.extend(other._problems)
        self._found |= other._found

    def refuse(self, where: str, total: int) -> None:
        """Refuse them.

        Args:
            where: Name of the source, for messages.
            total: Rows that were looked at.

        Raises:
            DataError: There are some; all of them are counted.
        """
        kinds = ", ".join(name for name in MEDIA_COLUMNS if name in self._found)
        self._problems.raise_if_any(
            f"{where}: COUNT of {total:,} rows have {kinds}; only text is supported:",
            f"remove these rows, or the column if their text stands alone; {SUPPORTED}",
        )


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, bytes, list, tuple, dict)) and not value)


def check_row(row: Mapping[str, Any]) -> None:
    """Refuse a row with a lone surrogate in a column, at any depth, or in a column's name; see :func:`check_text`."""
    if "\\ud" not in repr(row):  # repr escapes them, at a tenth of the time that the search takes
        return
    for column, value in row.items():
        check_text(column, "the name of a column")
        check_text(value, column)


def check_text(value: Any, what: str) -> None:
    """Refuse lone surrogates: halves of a character, which tokenizers, files and servers cannot take.

    Args:
        value: A value of a row, searched at any depth.
        what: Its name, for the message.

    Raises:
        DataError: A text holds one.
    """
    found = _lone_surrogate(value)
    if found is not None:
        raise DataError(f"{what} holds a lone surrogate (\\u{ord(found):04x}), half of a character")


def _lone_surrogate(value: Any) -> str | None:
    if isinstance(value, str):
        found = None if value.isascii() else _SURROGATE.search(value)
        return found[0] if found else None
    if isinstance(value, dict):
        parts: Iterable[Any] = itertools.chain(value, value.values())
    elif isinstance(value, (list, tuple)):
        parts = value
    else:
        return _lone_surrogate(dict(value)) if isinstance(value, Mapping) else None
    return next(filter(None, map(_lone_surrogate, parts)), None)
