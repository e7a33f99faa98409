"""Results under the digest of what they depend on: in the cache of this machine, and in the files of the repository."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dataflex.utils.files import write_json, write_text

Result = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """Where results are found by their key, the cache first.

    Attributes:
        folder: Of the cache.
        published: File of results that the repository keeps; need not exist.
        written: Keys that this run has asked for or measured, in their order, with their results.
    """

    folder: Path
    published: Path | None = None
    written: dict[str, Result] = field(default_factory=dict)

    def find(self, key: str) -> Result | None:
        """The result of a key, or None."""
        path = self.folder / "results" / f"{key}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else self._published.get(key)
        if found is not None:
            self.written[key] = found
        return found

    def keep(self, key: str, result: Result) -> None:
        """Write a result into the cache."""
        write_json(self.folder / "results" / f"{key}.json", result)
        self.written[key] = result

    def publish(self) -> None:
        """Write what this run has seen, and what the file has beside it, into the file: one line a result."""
        assert self.published is not None
        cells = {**self._published, **self.written}
        lines = [f"{json.dumps(key)}: {json.dumps(result)}" for key, result in sorted(cells.items())]
        write_text(self.published, "{\n" + ",\n".join(lines) + "\n}\n")

    @cached_property
    def _published(self) -> dict[str, Result]:
        if self.published is None or not self.published.is_file():
            return {}
        found: dict[str, Result] = json.loads(self.published.read_text(encoding="utf-8"))
        return found
