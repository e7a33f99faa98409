"""Text from data, servers and files, on its way to a person: :func:`shown`.

Whatever a table, a log line, an error, a card or a page shows goes through here, so that nothing in it can act: not on
the terminal (escapes, bidi overrides), not as Markdown, HTML or the markup of a table.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from dataflex.visible import ACTING_IN_LINES, visible

Target = Literal["text", "markdown", "html", "json"]

_MORE = "..."
# Inside a word an underscore is one; ``://``, ``www.`` and ``@`` would become links and mentions.
_MARKDOWN = re.compile(r"[\\`*\[\]<>&|~$@]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def shown(value: object, limit: int | None = None, *, lines: bool = False, target: Target = "text") -> str:
    r"""``value`` as text that does nothing where it is shown.

    Args:
        value: Anything; text as it is, the rest by ``str``.
        limit: Longest text in characters, before it is escaped for its target; a longer one ends in ``...``.
        lines: Keep line breaks and tabs, which are written out otherwise.
        target: Where it goes: ``text`` (terminal, log, error, cell of a table without markup), ``markdown`` (inside a
            line or a cell), ``html`` (text or attribute) or ``json`` (a JSON document: its value stays the same).

    Example:
        >>> print(shown("bold [b] \x1b[1m", target="markdown"))
        bold \[b\] \\x1b\[1m
    """
    text = str(value)
    if target == "json":
        return _json(text)
    if limit is not None and len(text) > limit:
        text = text[: limit + 1]  # the rest need not be looked at
    text = visible(text, lines=lines)
    if limit is not None and len(text) > limit:
        text = text[: max(limit - len(_MORE), 0)] + _MORE
    if target == "markdown":
        return _MARKDOWN.sub(r"\\\g<0>", text)
    return html.escape(text) if target == "html" else text


def quoted(value: Any, limit: int = 80) -> str:
    """``value`` as Python writes it, not too long: for messages about a wrong value."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        text = f"a huge {type(value).__name__}"
    return shown(text, limit)


def listed(values: Iterable[object], most: int = 10) -> str:
    """The first of some names, ids or paths, separated by commas."""
    found: Sequence[object] = list(values)
    return ", ".join(shown(value, 80) for value in found[:most]) + (", ..." if len(found) > most else "")


def one_record(text: str) -> str:
    """A message of possibly several lines, of which all but the first are indented: none can pass for another one."""
    return shown(text, lines=True).replace("\n", "\n  ")


def _json(text: str) -> str:
    """A JSON document in which characters that act are escaped: outside of its strings there are none."""

    def escaped(match: re.Match[str]) -> str:
        units = match[0].encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))

    return ACTING_IN_LINES.sub(escaped, text)
