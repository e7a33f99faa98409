"""What stands out in a row: not wrong, but seldom meant. Counted over a dataset and said once.

A note goes on after "N rows have ..."; equal notes are counted together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from dataflex.data.turns import KNOWN_KEYS
from dataflex.types import Message, Sample

MAX_SHOWN = 10

EMPTY = "an empty answer (no text, or white space only), which teaches the model to end at once"
TOOLS_CUT = "functions, and a prompt that lost its beginning to cutoff_len, where templates define them"
PLACEHOLDER = "a placeholder such as {{name}} in an answer, which is learnt as it stands"

_PLACEHOLDER = re.compile(r"(?<![\\\w^{$])\{\{\s*[A-Za-z_][\w.]+\s*\}\}(?!\})")
"""Two braces and a word: not LaTeX's ``\\frac{{a}}`` or ``x^{{n}}``."""


def row_notes(sample: Sample) -> Iterator[str]:
    """What stands out in the turns that are learnt."""
    learnt = [turn for turn in sample.messages if turn["role"] == "assistant" and turn.get("train", True)]
    if any(map(_is_empty, learnt)):
        yield EMPTY
    if any("{{" in turn["content"] and _PLACEHOLDER.search(turn["content"]) for turn in learnt):
        yield PLACEHOLDER


def _is_empty(turn: Message) -> bool:
    return not turn["content"].strip() and not turn.get("tool_calls")


def text_notes(quoted: Iterable[str], kept: Iterable[str]) -> Iterator[str]:
    """Text that reads like special tokens; see :mod:`dataflex.data.quoting`."""
    for token in quoted:
        yield f"text that reads like the control token {token!r}: it is encoded as text"
    for token in kept:
        yield f"the special token {token!r} in a text: it stays a token"


def unread_notes(messages: Sequence[Message], read: set[tuple[str, str]]) -> Iterator[str]:
    """Keys of turns that a template did not ask for, by role and key."""
    unread = {
        (turn["role"], key)
        for turn in messages
        for key, value in turn.items()
        if key not in KNOWN_KEYS and value not in ("", [], {}) and (turn["role"], key) not in read
    }
    for role, key in sorted(unread):
        yield f"{key!r} in {'an' if role == 'assistant' else 'a'} {role} turn, which the template does not read"


def counted(notes: Iterable[Sequence[str]]) -> dict[str, int]:
    """Rows with each note, the most frequent first."""
    return dict(Counter(note for row in notes for note in row).most_common())


def sentences(counts: Mapping[str, int], total: int) -> list[str]:
    """The counts in words, a line a note."""
    shown = list(counts.items())[:MAX_SHOWN]
    lines = [f"{count:,} of {total:,} rows have {note}" for note, count in shown]
    more = len(counts) - len(shown)
    return [*lines, f"... and {more:,} more kinds of such findings"] if more else lines
