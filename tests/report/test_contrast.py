"""The report's words and shapes stand out from the ground, light and dark (WCAG 2.2: 1.4.3, 1.4.11)."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from dataflex.report.drawing import COLOURS, SERIES
from dataflex.report.pictures import STRONGEST

TEMPLATE = files("dataflex.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
GROUNDS = {name: re.findall(rf"--{name}: (#[0-9a-f]{{6}});", TEMPLATE) for name in ("ground", "card")}
LIGHT, DARK = 0, 1
TINTS = [("chosen", STRONGEST), ("third", STRONGEST), ("second", 0.16), ("third", 0.16)]
"""Colours that words of a picture, or of a marked row, stand on: how much of them lies over the ground."""


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb", by the definition of WCAG 2.2."""
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_is_that_of_the_standard() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("role", ["ink", "faint"])
@pytest.mark.parametrize("ground", ["ground", "card"])
def test_words_can_be_read(ground: str, role: str, scheme: int) -> None:
    assert contrast(COLOURS[role][scheme], GROUNDS[ground][scheme]) >= 4.5


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("role", SERIES)
def test_shapes_can_be_seen(role: str, scheme: int) -> None:
    assert contrast(COLOURS[role][scheme], GROUNDS["ground"][scheme]) >= 3


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize(("role", "share"), TINTS)
def test_words_of_pictures_can_be_read(role: str, share: float, scheme: int) -> None:
    over, ground = COLOURS[role][scheme], GROUNDS["ground"][scheme]
    pairs = [(int(over[place : place + 2], 16), int(ground[place : place + 2], 16)) for place in (1, 3, 5)]
    mixed = "#" + "".join(f"{round(share * one + (1 - share) * other):02x}" for one, other in pairs)
    assert contrast(COLOURS["ink"][scheme], mixed) >= 4.5
