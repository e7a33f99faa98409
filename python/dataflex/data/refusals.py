"""What no row may hold, whatever its form: images, sound and film; text that no encoding can write."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dataflex.data.hints import SUPPORTED
from dataflex.data.problems import Problems
from dataflex.errors import DataError

MEDIA_COLUMNS = ("images", "image", "videos", "video", "audios", "audio")

_SURROGATE = re.compile("[\ud800-\udfff]")


def refuse_media(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int], where: str, used: Collection[str]) -> None:
    """Refuse rows with images, videos or audio: their text alone would be trained on.

    Args:
        rows: All rows of a source.
        numbers: Number of each row in its source.
        where: Name of the source, for messages.
        used: Columns that are mapped to a part of the conversation, whatever they are called.

    Raises:
        DataError: Some rows have such a column that is not empty; all of them are counted.
    """
    media = [name for name in MEDIA_COLUMNS if name not in used]
    problems, found = Problems(), set()
    for number, row in zip(numbers, rows, strict=True):
        names = [name for name in media if not _is_empty(row.get(name))]
        if names:
            problems.add(f"row {number}", DataError(f"has {', '.join(names)}"))
            found.update(names)
    kinds = ", ".join(name for name in MEDIA_COLUMNS if name in found)
    problems.raise_if_any(
        f"{where}: COUNT of {len(rows):,} rows have {kinds}; only text is supported:",
        f"remove these rows, or the column if their text stands alone; {SUPPORTED}",
    )


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, bytes, list, tuple, dict)) and not value)


def check_text(value: Any, what: str) -> None:
    """Refuse lone surrogates: halves of a character, which tokenizers, files and servers cannot take.

    Args:
        value: A value of a row, searched at any depth.
        what: Its name, for the message.

    Raises:
        DataError: A text holds one.
    """
    if isinstance(value, str):
        if not value.isascii() and (found := _SURROGATE.search(value)):
            raise DataError(f"{what} holds a lone surrogate (\\u{ord(found[0]):04x}), half of a character")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_text(key, f"a key in {what}")
            check_text(item, what)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_text(item, what)
