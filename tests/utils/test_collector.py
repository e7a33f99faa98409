"""Cycles are looked for seldom while rows are tokenised."""

from __future__ import annotations

import gc

import pytest

from dataflex.utils.collector import SELDOM, seldom_collected


def test_the_collector_is_as_it_was_afterwards_whatever_happens() -> None:
    before = gc.get_threshold()

    @seldom_collected()
    def fail() -> None:
        assert gc.get_threshold() == (SELDOM, *before[1:])
        raise ValueError("in the block")

    with pytest.raises(ValueError, match="in the block"):
        fail()
    assert gc.get_threshold() == before
