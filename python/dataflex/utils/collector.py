"""Python's collector of reference cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = 1 << 20
"""Objects that may come into being, beyond those that go, before cycles are looked for."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Look for cycles seldom in the block, which makes many objects and few cycles: that took a tenth of its time."""
    before = gc.get_threshold()
    gc.set_threshold(SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
