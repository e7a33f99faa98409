r"""Numbers in prose: finding them, and comparing the one that an answer ends (or begins) with.

What is read as one number, with ``decimal="."``:

=================== ======================================== ===================
form                examples                                 value
=================== ======================================== ===================
integer, decimal    42, -3.5, .5, $12.50, 7 km               as written
grouped thousands   1,234,567  1'000  1_000  (narrow spaces) 1234567, 1000, 1000
scientific          1.2e-3, 3 x 10^8, 2 \times 10^{-4}, 10⁵  0.0012, 3e8, 0.0002, 1e5
percent             45 %                                     0.45 (or 45)
fraction            3/4, 1 3/4, 1½, \frac{3}{4}              0.75, 1.75, 1.5, 0.75
=================== ======================================== ===================

A digit inside a word (H2O) is no number, a hyphen after a word or number (3-5) is no sign, and units after a number
are ignored here; :mod:`dataflex.rewards.units` reads them.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import regex

from dataflex.rewards.text import Take

Decimal = Literal[".", ","]
Percent = Literal["fraction", "ignore"]

_THOUSANDS = "'\N{RIGHT SINGLE QUOTATION MARK}\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}"
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_POWER = r"\s? (?: \^ | \*\* ) \s? \{? \s? (?P<power> [-+]? \d+ ) \}?"
_NUMBER = r"""
(?<!\w) (?<!\d\.)                       # not inside a word, a version or a decimal
(?P<sign> [-+] (?=[\d\\$€£¥₹{point}]) )?
(?: [$€£¥₹] \ ? )?
(?:
    (?: (?P<whole> \d{{1,3}} ) \s+ )?
    (?: \\d?frac \s* \{{ \s* (?P<top> \d+ ) \s* \}} \s* \{{ \s* (?P<bottom> \d+ ) \s* \}}
      | (?<! \d/ ) (?P<top> \d+ ) \ ? / \ ? (?P<bottom> \d+ ) (?! \w | / | {point} \d )
    )
  | 10 {power}
  | (?P<digits> (?: \d{{1,3}} (?: [{group}] \d{{3}} )+ (?!\d) | \d+ ) (?: {point} \d+ )? | (?<! {point} ) {point} \d+ )
    (?: [eE] (?P<power> [-+]? \d+ ) (?!\w) | \s? (?: [\u00d7\u00b7x*] | \\times | \\cdot ) \s? 10 {power} )?
)
(?P<percent> \s? \\? % )?
"""


def parse_numbers(text: str, *, decimal: Decimal = ".", percent: Percent = "fraction") -> list[float]:
    """All finite numbers of a text, in their order.

    Args:
        text: Prose, Markdown or LaTeX.
        decimal: The decimal separator; the other one of point and comma groups thousands.
        percent: ``fraction``: 45 % is 0.45; ``ignore``: 45 % is 45.
    """
    return [value for value, _ in parse_quantities(text, decimal=decimal, percent=percent)]


def parse_quantities(text: str, *, decimal: Decimal = ".", percent: Percent = "fraction") -> list[tuple[float, str]]:
    """All finite numbers of a text, each with the text that follows it; arguments as :func:`parse_numbers`."""
    plain = _plain(text)
    return [(value, plain[end:]) for value, end in _values(plain, decimal, percent) if math.isfinite(value)]


def numeric_match(
    prediction: str,
    reference: str,
    *,
    take: Take = "last",
    rel_tol: float = 1e-6,
    abs_tol: float = 0.0,
    decimal: Decimal = ".",
    percent: Percent = "fraction",
) -> float:
    """1.0 if the answer's last (or first) number is close to the reference's, else 0.0; no number in it is 0.0.

    Close means |a - b| <= max(rel_tol * max(|a|, |b|), abs_tol), as in :func:`math.isclose`.

    Args:
        prediction: The answer.
        reference: What is right; its number is taken from the same end.
        take: Which number counts if there are several.
        rel_tol: Relative tolerance.
        abs_tol: Absolute tolerance.
        decimal: The decimal separator.
        percent: What a percent sign means.

    Raises:
        ValueError: The reference holds no number.
    """
    position = 0 if take == "first" else -1
    wanted = parse_numbers(reference, decimal=decimal, percent=percent)
    if not wanted:
        raise ValueError(f"the reference {reference!r} holds no number")
    found = parse_numbers(prediction, decimal=decimal, percent=percent)
    if not found:
        return 0.0
    return float(math.isclose(found[position], wanted[position], rel_tol=rel_tol, abs_tol=abs_tol))


def _values(text: str, decimal: Decimal, percent: Percent) -> Iterator[tuple[float, int]]:
    """Values and the positions at which their texts end."""
    for match in _pattern(decimal).finditer(text):
        if match["bottom"] is not None:
            bottom = float(match["bottom"])
            value = float(match["whole"] or 0) + float(match["top"]) / bottom if 0 < bottom < math.inf else math.nan
        else:
            digits = regex.sub(r"[^\d" + decimal + "]", "", match["digits"] or "1").replace(decimal, ".")
            value = float(f"{digits}e{match['power'] or 0}")
        if match["percent"] and percent == "fraction":
            value /= 100
        yield -value if match["sign"] == "-" else value, match.end()


@lru_cache(maxsize=2)
def _pattern(decimal: Decimal) -> regex.Pattern[str]:
    group = f"{',' if decimal == '.' else '.'}_{_THOUSANDS}"
    return regex.compile(_NUMBER.format(point=regex.escape(decimal), group=group, power=_POWER), regex.VERBOSE)


def _plain(text: str) -> str:
    """Minus signs, fraction slashes, ½ and 10⁵ in their ASCII spelling."""
    text = text.replace("\N{MINUS SIGN}", "-").replace("\N{FRACTION SLASH}", "/")
    text = regex.sub(r"(?<=10)[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    return "".join(_fraction(character) for character in text)


def _fraction(character: str) -> str:
    if not unicodedata.decomposition(character).startswith("<fraction>"):
        return character
    return " " + unicodedata.normalize("NFKC", character).replace("\N{FRACTION SLASH}", "/")
