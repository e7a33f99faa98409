"""Code blocks of a page, with what they are for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"`(?P<path>[^`\s]+)`:\n\n\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: The word after the fence.
        text: What stands in it.
        file: The path that the line before it names, as in "`path`:"; None if there is none.
    """

    language: str
    text: str
    file: str | None

    @property
    def commands(self) -> list[tuple[str, list[str]]]:
        """The commands of a console block (lines with "$ "), each with the lines of output that follow it."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ ").split("  #")[0], []))
            else:
                found[-1][1].append(line)
        return found


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        named = _FILE.search(text[: match.start()])
        found.append(Block(match["language"], match["text"], named["path"] if named else None))
    return found


def section(page: Path, heading: str) -> str:
    """The text under a heading of the second level."""
    parts = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    [text] = [part.split("\n", 1)[1] for part in parts if part.startswith(f"{heading}\n")]
    return text
