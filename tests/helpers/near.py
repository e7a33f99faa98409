"""Rows for NEAR: families of questions, and a matrix over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataflex.retrieval.index import NearIndex
from helpers.encoders import WordEncoder

FAMILIES = {
    "sum": ("What is {0} plus {1}?", "{0} plus {1} is {2}."),
    "capital": ("Name the capital city of country {0}.", "Its capital city is called {1}."),
    "letter": ("Spell out letter number {0} in order.", "That letter would be {1}, then {2}."),
}


def rows(per_family: int, start: int = 0) -> list[dict[str, Any]]:
    """Alpaca rows of three families in turn; other starts give other rows."""
    made = []
    for number in range(start, start + per_family):
        for name, (question, answer) in FAMILIES.items():
            values = (f"n{number}", f"n{number * 7}", f"n{number * 7 + 1}")
            made.append({"task": name, "instruction": question.format(*values), "output": answer.format(*values)})
    return made


def near_index(folder: Path, candidates: Any = None, queries: Any = None, **params: Any) -> NearIndex:
    """An index over 30 candidates and 2 queries of the family ``sum``, 6 neighbours each, in ``folder``."""
    return NearIndex(
        rows(10) if candidates is None else candidates,
        [row for row in rows(2, start=50) if row["task"] == "sum"] if queries is None else queries,
        **({"encoder": WordEncoder(), "max_K": 6, "save_indices_path": folder / "near.npy"} | params),
    )
