from __future__ import annotations

from typing import Any

import pytest

from dataflex.config.document import Document, parse_yaml


def parse(text: str) -> Document:
    return parse_yaml(text, lambda line: f"f:{line}")


def test_places_of_keys_and_items() -> None:
    document = parse("a: 1\nb:\n  c: [x,\n    y]\n  d: {e: 2}\n")
    assert document.value == {"a": 1, "b": {"c": ["x", "y"], "d": {"e": 2}}}
    assert document.places == {
        ("a",): "f:1",
        ("b",): "f:2",
        ("b", "c"): "f:3",
        ("b", "c", 0): "f:3",
        ("b", "c", 1): "f:4",
        ("b", "d"): "f:5",
        ("b", "d", "e"): "f:5",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-.5E+3", -500.0),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("2024-01-31", "2024-01-31"),
        ("~", None),
        ("", None),
        ("yes", True),
        ("0x10", 16),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    document = parse(text)
    assert document.value == value
    assert document.problems == []


def test_merged_mappings_give_way_to_own_keys() -> None:
    document = parse("base: &b {x: 1, y: 2}\nover: &o {y: 3}\nall:\n  <<: [*o, *b]\n  z: 4\n")
    assert document.value["all"] == {"x": 1, "y": 3, "z": 4}
    assert document.places["all", "y"] == "f:2"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: {c: 1,\n  c: 2}", "f:3: 'c' is set twice (first at line 2)"),
        ("a: 1\n[1]: 2", "f:2: the key [1] is not text; put it in quotes"),
        ("a: !!python/object/apply:os.system [x]", "f:1: the tag tag:yaml.org,2002:python/object/apply:os.system"),
        ("a: !!set {x}", "f:1: the tag tag:yaml.org,2002:set is not accepted"),
        ("a: !!binary eA==", "f:1: the tag tag:yaml.org,2002:binary is not accepted"),
        ("a: !!int x", "f:1: 'x' is not a valid int"),
        (f"a: 0x{'f' * 9000}", "f:1: '0xfff"),
        ("a: &x\n  b: *x", "f:1: an alias contains itself"),
        ("a: {<<: 3}", "f:1: '<<' merges mappings only"),
        ("a: [1\nb: 2", "f:2: not valid YAML: while parsing a flow sequence"),
        ("a: 1\n---\nb: 2", "f:2: not valid YAML: expected a single document"),
        ("a: 1\n\x01", "f:2: not valid YAML: special characters are not allowed"),
        ("[" * 600, "f:1: nested too deeply"),
    ],
)
def test_problems(text: str, problem: str) -> None:
    [found] = parse(text).problems
    assert found.startswith(problem)


def test_aliases_do_not_expand_without_bound() -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12))
    [found] = parse(f"l0: &l0 [x]\n{levels}").problems
    assert "expands to more than" in found


def test_the_source_is_not_quoted_in_a_syntax_error() -> None:
    [found] = parse("api_key: sk-verysecret1: x\n").problems
    assert "secret1" not in found
