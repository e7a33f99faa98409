"""Comparing answers that have a form: the letter of a choice, a JSON value.

Functions take plain text and return 1.0 or 0.0; a reference that has not the form is an error.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import regex

from dataflex.rewards.strict_json import parse_json
from dataflex.rewards.text import Take

_FENCED = regex.compile(r"^[ \t]*```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```[ \t]*$", regex.DOTALL | regex.MULTILINE)


def choice_match(prediction: str, reference: str, *, letters: str = "ABCDEFGHIJ", take: Take = "last") -> float:
    r"""1.0 if the answer chooses the reference's letter, else 0.0; an answer that chooses none is 0.0.

    A choice is, by falling precedence: the answer is nothing but a letter (``b``, ``(B)``, ``**B**``); a statement
    (``the answer is B``, ``Option: (B)``, ``\boxed{B}``); a letter that opens a line like a list mark (``B. Paris``,
    ``(B) Paris``). Letters are capitals, except where nothing else stands; words like "A" or "I" are no choice.

    Args:
        prediction: The answer.
        reference: The right choice, in one of these forms.
        letters: The letters that can be chosen.
        take: Which one counts if there are several of the same precedence.

    Raises:
        ValueError: The reference holds no choice.
    """
    wanted = chosen_letter(reference, letters, take)
    if wanted is None:
        raise ValueError(f"the reference {reference!r} is none of the choices {letters}")
    return float(chosen_letter(prediction, letters, take) == wanted)


def chosen_letter(text: str, letters: str = "ABCDEFGHIJ", take: Take = "last") -> str | None:
    """The capital that a text chooses, or None; see :func:`choice_match`."""
    alone, *others = _choices(letters)
    lone = alone.fullmatch(text)
    if lone is not None:
        return str(lone[1]).upper()
    for pattern in others:
        found = pattern.findall(text)
        if found:
            return str(found[0 if take == "first" else -1])
    return None


def json_match(
    prediction: str, reference: str, *, rel_tol: float = 1e-6, abs_tol: float = 0.0, list_order: bool = True
) -> float:
    """1.0 if the answer is JSON of the same value as the reference, else 0.0.

    The answer is the last fenced block of the text, or the whole text if there is none. Objects are equal whatever the
    order of their keys, numbers within the tolerances (1 is 1.0), and true is not 1.

    Args:
        prediction: The answer.
        reference: What is right, in JSON.
        rel_tol: Relative tolerance of numbers.
        abs_tol: Absolute tolerance of numbers.
        list_order: Whether the order of a list matters.

    Raises:
        ValueError: The reference is not JSON.
    """
    wanted = parse_json(_payload(reference))
    try:
        found = parse_json(_payload(prediction))
    except ValueError:
        return 0.0
    return float(_equal(found, wanted, rel_tol, abs_tol, list_order))


@lru_cache(maxsize=8)
def _choices(letters: str) -> tuple[regex.Pattern[str], ...]:
    letter = f"([{regex.escape(letters)}])"
    return (
        regex.compile(rf"[\s*_`(\[\"']*{letter}[\s*_`)\]\"'.:]*", regex.IGNORECASE),
        regex.compile(
            rf"(?:(?i:\b(?:answer|choice|option)\b)(?:\s+(?i:is|would\s+be))?\s*[:=]?|\\boxed\s*\{{(?:\\text\s*\{{)?)"
            rf"[\s*_`(\[\"']*{letter}(?![\w'])(?!(?<=[AI])\s+(?!because|since)[a-z])"
        ),
        regex.compile(rf"^[\s*_`]*[(\[]?{letter}(?:[)\]]|[.:](?=[\s*_`]|$))", regex.MULTILINE),
    )


def _payload(text: str) -> str:
    blocks = _FENCED.findall(text)
    return str(blocks[-1]) if blocks else text.strip()


def _equal(first: Any, second: Any, rel_tol: float, abs_tol: float, list_order: bool) -> bool:
    options = rel_tol, abs_tol, list_order
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, int | float) and isinstance(second, int | float):
        return _close(first, second, rel_tol, abs_tol)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_equal(first[key], second[key], *options) for key in first)
    if isinstance(first, list) and isinstance(second, list):
        if len(first) != len(second):
            return False
        if list_order:
            return all(_equal(a, b, *options) for a, b in zip(first, second, strict=True))
        left = list(second)
        for value in first:
            match = next((i for i, other in enumerate(left) if _equal(value, other, *options)), None)
            if match is None:
                return False
            del left[match]
        return True
    return type(first) is type(second) and bool(first == second)


def _close(first: int | float, second: int | float, rel_tol: float, abs_tol: float) -> bool:
    try:
        return math.isclose(first, second, rel_tol=rel_tol, abs_tol=abs_tol)
    except OverflowError:  # an integer that no float holds
        return first == second
