from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.rewards.numeric import numeric_match, parse_numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", [42]),
        ("-3.5 and .5, then 6.", [-3.5, 0.5, 6]),
        ("\N{MINUS SIGN}7 +7", [-7, 7]),
        ("1,234,567 1'000 1_000 1\N{NARROW NO-BREAK SPACE}000", [1234567, 1000, 1000, 1000]),
        ("10,20 and 1,2345", [10, 20, 1, 2345]),
        ("1234,567", [1234, 567]),
        ("-$1,234.50 for €7", [-1234.5, 7]),
        ("1.2e-3 5E2 1e5kg 5 em", [0.0012, 500, 1, 5]),
        ("3 x 10^8 2 \\times 10^{-4} 3×10⁻² 10⁵", [3e8, 2e-4, 3e-2, 1e5]),  # noqa: RUF001
        ("45 % 45% 45\\%", [0.45] * 3),
        ("3/4 1 3/4 1½ ½ \\frac{3}{4} -\\frac{1}{2}", [0.75, 1.75, 1.5, 0.5, 0.75, -0.5]),
        ("3/4/2024 10:30", [3, 4, 2024, 10, 30]),
        ("3 - 5 = -2, 3-5, x-5", [3, 5, -2, 3, 5, 5]),
        ("H2O v1.2.3 x2", []),
        ("is...5, **6**, (7), #### 8", [5, 6, 7, 8]),
        ("5km/h, 3rd", [5, 3]),
        ("1/0, 1e999, " + "9" * 500, []),
        ("no number", []),
    ],
)
def test_numbers_in_prose(text: str, expected: list[float]) -> None:
    assert parse_numbers(text) == pytest.approx(expected)


def test_decimal_comma_and_percent_as_they_are() -> None:
    assert parse_numbers("1.234,5 und 3,14", decimal=",") == [1234.5, 3.14]
    assert parse_numbers("45 %", percent="ignore") == [45]


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["{!r}", "{:,}", "about {!r} m", "${!r}."]))
def test_a_printed_number_is_read_back(value: float, form: str) -> None:
    assert parse_numbers(form.format(value)) == [value]


@given(st.integers(-999, 999), st.integers(1, 999))
def test_a_printed_fraction_is_read_back(top: int, bottom: int) -> None:
    (value,) = parse_numbers(f"it is {top}/{bottom}")
    assert value == pytest.approx(float(Fraction(top, bottom)))


@given(st.text(max_size=60), st.sampled_from([".", ","]))
def test_any_text_gives_finite_numbers(text: str, decimal: str) -> None:
    assert all(math.isfinite(value) for value in parse_numbers(text, decimal=decimal))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["1,111" * 4000, "1 " * 10000, "\\frac{" * 4000, "1/" * 10000, "1 " + " " * 20000])
@pytest.mark.timeout(20)
def test_hostile_texts_take_linear_time(text: str) -> None:
    assert len(parse_numbers(text)) <= len(text)


@pytest.mark.parametrize(
    ("prediction", "reference", "options", "expected"),
    [
        ("First 3, then 72 apples.", "#### 72", {}, 1.0),
        ("First 3, then 72 apples.", "3", {"take": "first"}, 1.0),
        ("First 3, then 72 apples.", "3", {}, 0.0),
        ("0.333", "1/3", {}, 0.0),
        ("0.333", "1/3", {"rel_tol": 1e-2}, 1.0),
        ("10.4", "10", {"abs_tol": 0.5}, 1.0),
        ("45 %", "0.45", {}, 1.0),
        ("45 %", "45", {}, 0.0),
        ("45 %", "45", {"percent": "ignore"}, 1.0),
        ("none", "45", {}, 0.0),
        ("1,5", "1,5", {"decimal": ","}, 1.0),
    ],
)
def test_numeric_match(prediction: str, reference: str, options: dict[str, object], expected: float) -> None:
    assert numeric_match(prediction, reference, **options) == expected  # type: ignore[arg-type]


@given(*[st.floats(-1e9, 1e9)] * 2, st.floats(0, 0.5), st.floats(0, 10))
def test_numeric_match_is_symmetric_and_reflexive(a: float, b: float, rel_tol: float, abs_tol: float) -> None:
    def match(x: float, y: float) -> float:
        return numeric_match(repr(x), repr(y), rel_tol=rel_tol, abs_tol=abs_tol)

    assert match(a, b) == match(b, a) == float(math.isclose(a, b, rel_tol=rel_tol, abs_tol=abs_tol))
    assert match(a, a) == 1.0


def test_a_reference_without_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match="'none' holds no number"):
        numeric_match("3", "none")
