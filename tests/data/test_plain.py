from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

import numpy as np
import pandas as pd
import pytest

from dataflex.data.messages import tool_calls_of, tools_of
from dataflex.data.plain import plain
from dataflex.errors import DataError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (datetime(2024, 1, 2, 3, 4, 5, 6), "2024-01-02T03:04:05.000006"),
        (datetime(2024, 1, 2, tzinfo=UTC), "2024-01-02T00:00:00+00:00"),
        (date(2024, 1, 2), "2024-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(days=1, seconds=3), "P1DT3S"),
        (pd.Timestamp("2024-01-02 03:04:05.000000007"), "2024-01-02T03:04:05.000000007"),
        (pd.Timedelta("5ns"), "P0DT0H0M0.000000005S"),
        (pd.NaT, None),
        (Decimal("1.10"), "1.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (b"\xff\xfe\xfd\xfc", "//79/A=="),
        (float("nan"), None),
        (float("-inf"), None),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array([1.5, np.nan]), [1.5, None]),
        (np.datetime64("2024-01-02T03:04:05.000000007"), "2024-01-02T03:04:05.000000007"),
        (np.array(["2024-01-02", "NaT"], dtype="datetime64[D]"), ["2024-01-02", None]),
        ([("key", 1)], [["key", 1]]),
        (
            {"a": {date(2024, 1, 2): [Decimal("0.1")], 1: True, None: 2}},
            {"a": {"2024-01-02": ["0.1"], "1": True, "null": 2}},
        ),
    ],
)
def test_what_json_lacks_has_a_plain_form(value, expected):
    found = plain(value)
    assert found == expected
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


def test_what_json_knows_stays_as_it_is():
    value = {"a": [1, 2.5, True, None, "\ud800", 12345678901234567890123], "b": {}}
    assert plain(value) == value
    assert [type(item) for item in plain(value)["a"]] == [type(item) for item in value["a"]]


def test_other_objects_are_named():
    with pytest.raises(DataError, match=r"^<object object at .*> is a object, which has no form in JSON$"):
        plain({"a": [object()]})
    with pytest.raises(DataError, match=r"the key \(1, 2\) has no form in JSON"):
        plain({(1, 2): 3})


def test_calls_and_definitions_of_functions_are_plain():
    when = datetime(2024, 1, 2)
    assert tool_calls_of({"name": "f", "arguments": {"when": when}}, "call")[0]["function"]["arguments"] == {
        "when": "2024-01-02T00:00:00"
    }
    assert tools_of([{"name": "f", "default": Decimal("1.5")}])[0]["function"]["default"] == "1.5"
