r"""Characters that act on a terminal or hide in a text, written out: below everything that speaks.

A row's id, a task name, a path or a server's reply may hold any character. An escape clears the screen or fakes a line,
a carriage return writes over one, a bidi override shows a text in another order than it has, a surrogate cannot be
printed at all. Written as Python writes them (``\x1b``, ``\u202e``) they do nothing and can be seen.
"""

from __future__ import annotations

import re

_CONTROLS = r"\x00-\x1f\x7f-\x9f"
_BIDI = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
# The joiners U+200C and U+200D stay: Persian, Hindi and emoji are written with them.
_UNSEEN = r"\xad\u180e\u200b\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
_BREAKS = r"\u2028\u2029"
_SURROGATES = r"\ud800-\udfff"

ACTING = re.compile(f"[{_CONTROLS}{_BIDI}{_UNSEEN}{_BREAKS}{_SURROGATES}]")
"""A character that acts, or cannot be seen or printed."""
ACTING_IN_LINES = re.compile(f"(?![\\n\\t]){ACTING.pattern}")
"""The same, but for line breaks and tabs."""


def visible(text: str, *, lines: bool = False) -> str:
    r"""``text`` with control characters, bidi marks, unseen characters and lone surrogates written out.

    Args:
        text: Any text.
        lines: Keep line breaks and tabs.

    Example:
        >>> print(visible("red \x1b[31m"))
        red \x1b[31m
    """
    return (ACTING_IN_LINES if lines else ACTING).sub(_written, text)


def _written(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")
