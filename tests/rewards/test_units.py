from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.rewards.units import parse_unit, quantity_match


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" km", "kilometer"),
        ("kg", "kilogram"),
        (" hours.", "hour"),
        (" km/h", "kilometer / hour"),
        (" kilometers per hour", "kilometer / hour"),
        (" m/s^2", "meter / second ** 2"),
        (" m²", "meter ** 2"),
        (" m2", "meter ** 2"),
        (" N·m", "meter * newton"),
        ("°C", "degree_Celsius"),
        (" degrees Fahrenheit", "degree_Fahrenheit"),
        (" km per apple", "kilometer"),
        ("-km", "kilometer"),
        (" apples", None),
        (" in total", None),
        (" as well", None),
        ("%", None),
        (", of course", None),
        ("", None),
    ],
)
def test_units_after_a_number(text: str, expected: str | None) -> None:
    found = parse_unit(text)
    assert (None if found is None else str(found)) == expected


@pytest.mark.parametrize(
    ("prediction", "reference", "options", "expected"),
    [
        ("It takes 90 minutes.", "1.5 hours", {}, 1.0),
        ("77 °F", "25 °C", {}, 1.0),
        ("78 °F", "25 °C", {}, 0.0),
        ("78 °F", "25 °C", {"abs_tol": 1.0}, 1.0),
        ("18 km/h", "5 m/s", {}, 1.0),
        ("5 kg", "5 km", {}, 0.0),
        ("4 in", "10.16 cm", {}, 1.0),
        ("5 in total", "5 kg", {}, 1.0),
        ("5 in total", "5 kg", {"strict": True}, 0.0),
        ("5 apples", "5 pears", {}, 1.0),
        ("5 km", "5", {}, 1.0),
        ("first 3 m, then 500 cm", "3 m", {"take": "first"}, 1.0),
        ("0,5 km", "500 m", {"decimal": ","}, 1.0),
        ("nothing", "5 km", {}, 0.0),
    ],
)
def test_quantities(prediction: str, reference: str, options: dict[str, Any], expected: float) -> None:
    assert quantity_match(prediction, reference, **options) == expected


def test_a_reference_without_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="holds no number"):
        quantity_match("5 km", "km")


@given(st.text(max_size=60), st.sampled_from(["5 km", "3 m/s²", "20 °C"]))
def test_any_answer_is_right_or_wrong(text: str, reference: str) -> None:
    assert quantity_match(text, reference) in (0.0, 1.0)
    assert quantity_match(f"5 {text}", reference) in (0.0, 1.0)
