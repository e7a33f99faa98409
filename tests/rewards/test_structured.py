from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.rewards.strict_json import parse_json
from dataflex.rewards.structured import choice_match, chosen_letter, json_match

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[(text, "B") for text in ("B", "b", "(b)", " **B**.", "[B]", "B)", "`B`", "\nB\n")],
        ("The answer is B", "B"),
        ("the answer is (C), not A", "C"),
        ("Answer: C", "C"),
        ("Final answer:\n**(A)**", "A"),
        ("**Answer: D. Rome**", "D"),
        ("\\boxed{D}", "D"),
        ("\\boxed{\\text{E}}", "E"),
        ("Option B is right", "B"),
        ("The answer is A.", "A"),
        ("The answer is A because it is", "A"),
        ("First I thought the answer is A. The answer is B.", "B"),
        ("B. Paris\nbecause it is the capital", "B"),
        ("(C) Rome", "C"),
        ("A cat is here", None),
        ("I think so", None),
        ("The answer is a cat", None),
        ("The answer is A good one", None),
        ("The answer is Bologna", None),
        ("Z", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_letter_that_is_chosen(text: str, expected: str | None) -> None:
    assert chosen_letter(text) == expected


def test_choices_of_the_reference() -> None:
    assert choice_match("(b)", "B. Paris") == 1.0
    assert choice_match("no idea", "B") == 0.0
    assert choice_match("The answer is A. The answer is B.", "A", take="first") == 1.0
    with pytest.raises(ValueError, match="none of the choices ABC"):
        choice_match("A", "D", letters="ABC")


@given(st.text(max_size=80))
def test_any_text_chooses_a_letter_or_none(text: str) -> None:
    found = chosen_letter(text, "ABCD")
    assert found is None or found in set("ABCD")


@pytest.mark.parametrize(
    ("prediction", "reference", "options", "expected"),
    [
        ('{"b": 2, "a": 1}', '{"a": 1, "b": 2.0}', {}, 1.0),
        ('Here it is:\n```json\n{"a": 1}\n```\nDone.', '{"a": 1}', {}, 1.0),
        ('```\n{"a": 2}\n```\nno:\n```\n{"a": 1}\n```', '{"a": 1}', {}, 1.0),
        ('Here it is: {"a": 1}', '{"a": 1}', {}, 0.0),
        ('{"a": true}', '{"a": 1}', {}, 0.0),
        ('{"a": "1"}', '{"a": 1}', {}, 0.0),
        ('{"a": 1, "b": null}', '{"a": 1}', {}, 0.0),
        ("[1, 2]", "[2, 1]", {}, 0.0),
        ("[1, 2]", "[2, 1]", {"list_order": False}, 1.0),
        ("[1, 1, 2]", "[1, 2, 2]", {"list_order": False}, 0.0),
        ("0.33", "0.3333", {"rel_tol": 0.02}, 1.0),
        ("10.4", "10", {"abs_tol": 0.5}, 1.0),
        ('{"a": 1, "a": 1}', '{"a": 1}', {}, 0.0),
        ("NaN", "null", {}, 0.0),
        ("1e999", "1e308", {}, 0.0),
        ("[" * 100_000, "[]", {}, 0.0),
        ("1" + "0" * 400, "1" + "0" * 400, {}, 1.0),
        ("1" + "0" * 400, "1.0", {}, 0.0),
    ],
)
def test_json_values(prediction: str, reference: str, options: dict[str, Any], expected: float) -> None:
    assert json_match(prediction, reference, **options) == expected


@pytest.mark.parametrize("reference", ["{", "NaN", '{"a": 1, "a": 2}', "[" * 100_000, "1e999"])
def test_a_reference_that_is_not_json_is_an_error(reference: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own messages and ours
        json_match("1", reference)


@given(JSON, st.integers(0, 3))
def test_a_value_equals_itself_however_it_is_written(value: Any, indent: int) -> None:
    text = json.dumps(value, indent=indent or None, sort_keys=bool(indent))
    assert json_match(text, json.dumps(value)) == 1.0
    assert json_match(f"So:\n```json\n{text}\n```", json.dumps(value), list_order=False) == 1.0
    assert parse_json(text) == value


@given(JSON, JSON)
def test_comparison_is_symmetric(first: Any, second: Any) -> None:
    a, b = json.dumps(first), json.dumps(second)
    assert json_match(a, b) == json_match(b, a)
