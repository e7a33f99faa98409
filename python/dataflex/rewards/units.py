"""Numbers with units: 5 km is 5000 m, 77 °F is 25 °C, and 5 kg is neither.

The unit is read from the text right after a number; known units are those of pint. Four English words are units too
(``in`` is an inch): they count as units only where the reference asks for one of their kind.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import regex

from dataflex.rewards.numeric import Decimal, Percent, parse_quantities
from dataflex.rewards.text import Take

Units = Literal["ignore", "convert", "require"]

_NAME = (
    r"(?:°\s?[CFK]?|(?i:degrees?\s(?:celsius|fahrenheit))|[\p{L}µμΩ]+)(?:\s?(?:\^|\*\*)\s?-?\d|[²³⁻¹]{1,2}|\d(?!\w))?"
)
_UNIT = regex.compile(rf"\s?-?(?P<unit>{_NAME}(?:\s?(?:[/·⋅*]|\bper\b)\s?{_NAME})*)")
_SHORTER = regex.compile(r"\s?(?:[/·⋅*]|\bper\b)")
_LONGEST_UNIT = 60
"""Characters after a number that are looked at."""

_SPELLINGS = (
    (r"°\s?(?=[CFK])", "deg"),
    (r"(?i)degrees?\scelsius", "degC"),
    (r"(?i)degrees?\sfahrenheit", "degF"),
    (r"(?<=\p{L})(?=\d)", "**"),
    (r"[·⋅]", "*"),
    (r"Ω", "ohm"),
    (r"\^", "**"),
)
"""From how units are written to how pint reads them."""

_WORDS = frozenset({"a", "as", "at", "in"})


def quantity_match(
    prediction: str,
    reference: str,
    *,
    take: Take = "last",
    rel_tol: float = 1e-6,
    abs_tol: float = 0.0,
    decimal: Decimal = ".",
    percent: Percent = "fraction",
    strict: bool = False,
) -> float:
    """1.0 if the answer's last (or first) quantity is close to the reference's, in the reference's unit, else 0.0.

    Args:
        prediction: The answer.
        reference: What is right; if it has no unit, numbers alone are compared.
        take: Which number counts if there are several.
        rel_tol: Relative tolerance.
        abs_tol: Absolute tolerance, in the reference's unit.
        decimal: The decimal separator.
        percent: What a percent sign means.
        strict: An answer without a unit is wrong; otherwise its number is taken to be in the reference's unit.

    Raises:
        ValueError: The reference holds no number.
    """
    position = 0 if take == "first" else -1
    wanted = parse_quantities(reference, decimal=decimal, percent=percent)
    if not wanted:
        raise ValueError(f"the reference {reference!r} holds no number")
    found = parse_quantities(prediction, decimal=decimal, percent=percent)
    if not found:
        return 0.0
    (value, after), (target, after_target) = found[position], wanted[position]
    unit = parse_unit(after_target)
    if unit is not None:
        given = parse_unit(after, unit)
        if given is None and strict:
            return 0.0
        converted = value if given is None else _converted(value, given, unit)
        if converted is None:
            return 0.0
        value = converted
    return float(math.isclose(value, target, rel_tol=rel_tol, abs_tol=abs_tol))


def parse_unit(text: str, like: Any = None) -> Any:
    """The unit that a text begins with, or None; of ``km per apple`` the longest part that is a unit.

    Args:
        text: What follows a number.
        like: A unit; words of prose count as units only if they are of its kind.

    Returns:
        A ``pint.Unit`` that is not dimensionless, or None.
    """
    match = _UNIT.match(text[:_LONGEST_UNIT])
    if match is None:
        return None
    written = match["unit"]
    ends = [len(written), *(cut.start() for cut in reversed(list(_SHORTER.finditer(written))))]
    unit = next((unit for end in ends if (unit := _known(written[:end])) is not None), None)
    is_prose = written in _WORDS and (like is None or unit is None or unit.dimensionality != like.dimensionality)
    return None if is_prose else unit


@lru_cache(maxsize=4096)
def _known(name: str) -> Any:
    import pint

    for pattern, spelling in _SPELLINGS:
        name = regex.sub(pattern, spelling, name)
    try:
        unit = _registry().parse_units(name)
    except (pint.PintError, ValueError, TypeError, AttributeError, KeyError, SyntaxError, AssertionError):
        return None
    return None if unit.dimensionless else unit


def _converted(value: float, unit: Any, target: Any) -> float | None:
    """The value in the target's unit, or None if that cannot be."""
    import pint

    try:
        return float(_registry().Quantity(value, unit).to(target).magnitude)
    except (pint.PintError, OverflowError, ZeroDivisionError):
        return None


@lru_cache(maxsize=1)
def _registry() -> Any:
    import pint

    return pint.UnitRegistry()
