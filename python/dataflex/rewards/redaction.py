"""A key is in no text that is shown or kept, however a server spells it.

Servers and proxies repeat what they were sent: as it is, in JSON or a program's literal, quoted for a URL or a page, as
base64 or hexadecimal digits, or shortened with stars. Each character of the key is looked for in all of these
spellings at once, so that mixtures are found, too; letters count in either case.
"""

from __future__ import annotations

import re
from base64 import b64encode
from functools import lru_cache
from html.entities import codepoint2name
from itertools import groupby

SHOWN_CHARACTERS = 300
"""How much of a text from a server a message shows."""

_READ_CHARACTERS = 65536
"""How much of it is looked through for that: a thousand spellings of a key, and what a message shows, fit into it."""

_SHORTEST_CODE = 8
"""Characters of base64 that are no chance."""

_WHITE_SPACE = "white space"
_UNPRINTABLE = "a character that is not printable ASCII"


def key_problems(key: str) -> list[str]:
    """What in a key no header can carry, in words that show nothing of it."""
    found = []
    if len(key.splitlines()) > 1:
        found.append("a line break")
    elif any(character.isspace() for character in key):
        found.append(_WHITE_SPACE)
    if any(not character.isspace() and not "!" <= character <= "~" for character in key):
        found.append(_UNPRINTABLE)
    return found


def redacted(text: str, key: str | None) -> str:
    """``text`` without the key, shortened, on one line."""
    text = " ".join(text.split())
    if key:
        text = _spellings(key).sub("(redacted)", text[:_READ_CHARACTERS])
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


@lru_cache(maxsize=8)
def _spellings(key: str) -> re.Pattern[str]:
    """All spellings of a key, and what is left of it where a server has put stars or dots into the middle."""
    codes = [code for offset in range(3) if len(code := _base64_inside(key, offset)) >= _SHORTEST_CODE]
    # The characters beside a code mix bits of the key with bits of its neighbours: they go with it.
    spelled = [rf"[\w+/-]{{0,2}}{_spelled(code)}[\w+/-]{{0,2}}=*" for code in codes]
    gap = r"(?:[*•.]{3,}|…)"
    shortened = rf"{_spelled(key[:3])}[^\s*•…]{{0,40}}?{gap}[^\s\"'<>,;]{{0,40}}"
    end = rf"(?<=[*•…])(?:{'|'.join(_spelled(key[-length:]) for length in (4, 3, 2))})"
    return re.compile("|".join([_spelled(key), *spelled, key.encode().hex(), shortened, end]), re.IGNORECASE)


def _base64_inside(key: str, offset: int) -> str:
    """The characters of base64 that depend on nothing but the key, which begins ``offset`` bytes into a group."""
    code = b64encode(b"\0" * offset + key.encode()).decode()
    return code[(0, 2, 3)[offset] : 8 * (offset + len(key.encode())) // 6]


def _spelled(text: str) -> str:
    """A pattern of all spellings of a text. Every repetition in it has a bound, so that no text takes it long."""
    runs = ((character, len(list(run))) for character, run in groupby(text))
    return "".join(
        _backslashes(count) if character == "\\" else _character(character) * count for character, count in runs
    )


def _backslashes(count: int) -> str:
    """A pattern of the spellings of a run of backslashes; each of them may have been doubled, twice."""
    escaped = rf"(?:\\{{1,4}}(?:u005c|x5c|134)){{{count}}}"
    plain = r"(?:\\|%(?:25){0,3}5c|&#0{0,4}92;|&#x0{0,4}5c;|&bsol;)"
    return rf"(?:{escaped}|{plain}{{{count},{4 * count + 4}}}+)"


def _character(character: str) -> str:
    """A pattern of the spellings of one character that is no backslash."""
    code = ord(character)
    plain = {"+": "[+-]", "-": "[+-]", "/": "[/_]", "_": "[/_]"}.get(character, re.escape(character))  # base64url
    escaped = rf"u00{code:02x}|u\{{0{{0,4}}{code:x}\}}|x{code:02x}|{code:03o}"
    named = codepoint2name.get(code, "apos" if character == "'" else f"#{code}")
    entity = rf"&(?:amp;){{0,3}}(?:#0{{0,4}}{code}|#x0{{0,4}}{code:x}|{named});"
    return rf"(?:\\{{0,8}}{plain}|\\{{1,8}}(?:{escaped})|%(?:25){{0,3}}{code:02x}|{entity})"
