"""The pages of the documentation and the code blocks in them."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field

from helpers.scripts import ROOT

ELSEWHERE = {
    "docs/cluster.md": "tests/docs/test_cluster_page.py",
    "docs/getting-started.md": "tests/docs/test_getting_started.py",
    "docs/plugins.md": "tests/docs/test_plugins_page.py",
    "docs/trainers.md": "tests/docs/test_trainers_page.py",
}
"""Pages that a test of their own follows to the letter."""

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<language>[^`\s]*)(?P<rest>[^`]*)$")
_MARK = re.compile(r"^ *<!-- test: (?P<mark>.+?) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The page below the root of the repository.
        line: Line of its fence, from 1.
        language: The word behind the fence; braces make it a directive of the documentation.
        text: What stands in it, without its indentation.
        marks: The comments ``<!-- test: ... -->`` right before it.
    """

    page: str
    line: int
    language: str
    text: str
    marks: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def skipped(self) -> str | None:
        """Why the block is not run, if it says so (``<!-- test: skip, needs a GPU -->``)."""
        return next((mark.removeprefix("skip, ") for mark in self.marks if mark.startswith("skip, ")), None)

    @property
    def file(self) -> str | None:
        """The name of the file that the block shows, if its first line is ``# NAME``."""
        found = re.match(r"# ([\w./-]+\.(?:yaml|py|jsonl|json|toml))$", self.text.split("\n", 1)[0])
        return found[1] if found else None


def pages() -> list[str]:
    """All pages of Markdown that a user reads, below the root of the repository, but for those of ELSEWHERE."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    found += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "examples").rglob("README.md"))
    names = [str(path.relative_to(ROOT)) for path in found if "_build" not in path.parts]
    return [name for name in names if not (ROOT / ELSEWHERE.get(name, "nowhere")).is_file()]


def blocks_of(page: str) -> list[Block]:
    """The code blocks of a page in their order, directives left out."""
    return [block for block in _fenced(page, (ROOT / page).read_text(encoding="utf-8")) if block.language[:1] != "{"]


def _fenced(page: str, text: str) -> list[Block]:
    found: list[Block] = []
    marks: list[str] = []
    lines = iter(enumerate(text.split("\n"), start=1))
    for number, line in lines:
        opening = _FENCE.match(line)
        if opening is None:
            mark = _MARK.match(line)
            marks = [*marks, mark["mark"]] if mark else marks if not line.strip() else []
            continue
        body = []
        for _, inner in lines:
            if inner.strip() == opening["ticks"]:
                break
            body.append(inner)
        found.append(Block(page, number, opening["language"], textwrap.dedent("\n".join(body)), tuple(marks)))
        marks = []
    return found


def all_blocks(*languages: str) -> list[Block]:
    """The blocks of all pages in some languages (or in any)."""
    found = [block for page in pages() for block in blocks_of(page)]
    return [block for block in found if not languages or block.language in languages]
