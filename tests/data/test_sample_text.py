"""Samples come back from bytes as they were, or are refused."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.data.sample_text import NotStorableError, metadata_text, read_metadata, read_turns, turns_text
from dataflex.types import Sample

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"]))


def once(moment: Any) -> Any:
    """Not in the hour that comes twice when clocks go back, which is refused."""
    return moment.replace(fold=0)


OTHERS = st.one_of(
    *(st.dates(), st.times().map(once), st.datetimes().map(once), st.timedeltas()),
    *(st.decimals(allow_nan=False), st.uuids(), st.binary()),
)
VALUES = st.recursive(
    PLAIN | OTHERS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("ab\0dataflexvu", max_size=9), VALUES, max_size=3))
def test_columns_come_back(values: dict[str, Any]) -> None:
    found = read_metadata(metadata_text(Sample("a", 0, (), metadata=values)))
    assert repr(found) == repr(values)  # NaN differs from itself


@given(st.text(st.characters(exclude_categories=["Cs"])), VALUES)
def test_turns_come_back(content: str, other: Any) -> None:
    turns = ({"role": "user", "content": content, "other": other}, {"role": "assistant", "content": ""})
    sample = Sample("a", 0, turns, ({"name": "f", "parameters": {"x": other}},))  # type: ignore[arg-type]
    assert repr(read_turns(turns_text(sample))) == repr((sample.messages, sample.tools))


class Day(date):
    pass


TAGGED = {"\0dataflex": "date", "value": "2026-01-01"}
CHANGING = [(1,), {1: 2}, object(), {1}, time(2, 30, fold=1), Day(2026, 1, 1), TAGGED, "\ud800"]


@pytest.mark.parametrize("value", CHANGING)
def test_what_would_change_is_refused(value: Any) -> None:
    with pytest.raises(NotStorableError):
        metadata_text(Sample("a", 0, (), metadata={"it": [value]}))


def test_kinds_beside_json() -> None:
    values = {"d": date(1, 1, 1), "t": time(1, 2, 3, 4), "dt": datetime(2026, 1, 1, 1), "td": timedelta(-1, 5, 7)}
    assert read_metadata(metadata_text(Sample("a", 0, (), metadata=values))) == values
    assert metadata_text(Sample("a", 0, ())) == b""
    assert read_metadata(b"") == {}
