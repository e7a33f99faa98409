"""Wrong values in words: the nearest name comes from the mapping that the mistake is in."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from dataflex.plugins.configurable import validation_lines
from dataflex.utils.messages import fields_at


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    temperature: float = 1.0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner | None = None
    number: int = 0


def test_a_nested_mistake_gets_the_nearest_name_of_its_own_mapping():
    with pytest.raises(ValidationError) as caught:
        Outer(inner={"temprature": 1}, numbr=2)
    assert validation_lines(caught.value, Outer) == [
        "unknown key 'inner.temprature'; did you mean 'temperature'?",
        "unknown key 'numbr'; did you mean 'number'?",
    ]


def test_fields_below_a_path():
    assert fields_at(Outer, ()) == ["inner", "number"]
    assert fields_at(Outer, ("inner",)) == ["temperature"]
    assert fields_at(Outer, ("number", 3)) == []
