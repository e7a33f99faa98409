"""Text of rows that reads like a control token stays text.

A tokenizer turns the text of a control token into that token wherever it stands. In a row, ``<|im_end|>`` is text about
ChatML, HTML (``<s>``), or an attempt to speak in another role; as a token it would end the answer that is learnt, or
open a turn in a prompt. So a mark, which no row holds, goes into each such text before a template sees it. Behind the
template, only what the template itself wrote reads like a control token, and the places of the marks become boundaries
of tokens: no tokenizer can join the two halves.

Control tokens are the special tokens that the template writes around turns, its end of turn, and those that the
tokenizer has names for (``bos_token``, ``eos_token``, ``pad_token``, ...). Special tokens that only rows write (a
separator, marks around a thought) stay tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dataflex.data.encoding import Span

_PRIVATE = range(0xE000, 0xF900)
"""Code points without a meaning, one of which is the mark. JSON may write it as an escape."""


class Quotes:
    """Marks what reads like a control token in the values of one conversation, and finds it again in rendered text.

    Args:
        control: Control tokens, each of at least two characters.
        special: Other special tokens, which stay tokens.
        values: The conversation.

    Attributes:
        quoted: Control tokens that the conversation has as text.
        kept: Other special tokens in it.
    """

    def __init__(self, control: TokenPattern, special: TokenPattern, values: Any) -> None:
        texts = _texts(values)
        self._control = control
        self.quoted = control.found(texts)
        self.kept = special.found(texts)
        self._mark = _unused(texts) if self.quoted else None

    def marked(self, value: Any) -> Any:
        """``value`` with a mark in every text that reads like a control token, at any depth."""
        if self._mark is None:
            return value
        if isinstance(value, str):
            return self._control.split(value, self._mark)
        if isinstance(value, Mapping):
            return {self.marked(key): self.marked(item) for key, item in value.items()}
        return [self.marked(item) for item in value] if isinstance(value, (list, tuple)) else value

    def unmarked(self, text: str, spans: list[Span]) -> tuple[str, list[Span], list[int]]:
        """Rendered text without the marks, the spans in it, and the places where marks were."""
        if self._mark is None:
            return text, spans, []
        mark = re.compile(f"{self._mark}|\\\\u{ord(self._mark):04x}")
        ends: list[int] = []
        removed: list[int] = []
        for match in mark.finditer(text):
            ends.append(match.end())
            removed.append(len(match[0]) + (removed[-1] if removed else 0))

        def moved(place: int) -> int:
            before = bisect_right(ends, place)
            return place - (removed[before - 1] if before else 0)

        cuts = [end - taken for end, taken in zip(ends, removed, strict=True)]
        return mark.sub("", text), [(moved(start), moved(end)) for start, end in spans], cuts


class TokenPattern:
    """Finds the texts of some tokens.

    Args:
        tokens: The tokens; those of a single character cannot be told from text and are left out.
    """

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens = sorted({token for token in tokens if len(token) > 1}, key=lambda token: (-len(token), token))
        self._first = {token[0] for token in self.tokens}
        # Tokens may overlap, and each must be found: one match a place where some token could begin.
        self._start = re.compile(f"[{''.join(map(re.escape, self._first))}]") if self.tokens else None
        self._token = re.compile("|".join(map(re.escape, self.tokens)))

    def found(self, texts: Iterable[str]) -> list[str]:
        """Those tokens that are in ``texts``, sorted."""
        some = [text for text in texts if any(map(text.__contains__, self._first))]  # seldom any
        return sorted({match[0] for text in some for match in self._matches(text)})

    def split(self, text: str, mark: str) -> str:
        """``text`` with ``mark`` behind the first character of every token."""
        places = [match.start() + 1 for match in self._matches(text)]
        return mark.join(text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True))

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        if self._start is not None:
            for start in self._start.finditer(text):
                if match := self._token.match(text, start.start()):
                    yield match


def _texts(value: Any) -> list[str]:
    """All texts in a value, at any depth."""
    found, waiting = [], [value]
    for item in waiting:  # which grows
        if isinstance(item, str):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            waiting += item
        elif isinstance(item, (dict, Mapping)):  # of an abstract class alone it takes twice as long to tell
            waiting += item
            waiting += item.values()
    return found


def _unused(texts: Iterable[str]) -> str:
    """A private character that no text has."""
    used = set().union(*texts)
    return next(char for char in map(chr, _PRIVATE) if char not in used)
