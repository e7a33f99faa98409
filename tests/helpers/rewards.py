"""Reward functions for ``metric: module:function``."""

from __future__ import annotations

from typing import Any


def text_length(prediction: str, reference: str | None, metadata: dict[str, Any]) -> float:
    """A number in [0, 1] that varies from answer to answer."""
    return len(prediction) % 7 / 6
