"""Texts that several errors of this package share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SUPPORTED = "supported are supervised text samples: a conversation, or a prompt with its answer"


def nearest_hint(name: str, known: Iterable[str]) -> str | None:
    """``did you mean 'x'?``, or None if nothing is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else None
