"""Rows and the files that they are in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataflex.testing import tiny_samples


def alpaca_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The tiny samples in Alpaca form, with their metadata as further columns."""
    return [
        {"instruction": sample.messages[0]["content"], "output": sample.reference, **sample.metadata}
        for sample in tiny_samples(count, seed)
    ]


def write_rows(path: Path, made: Iterable[Mapping[str, Any]]) -> Path:
    """A JSON Lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path
