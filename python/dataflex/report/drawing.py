"""One look for all pictures, and the forms that they are handed over in.

matplotlib draws with the light colours of :data:`COLOURS`. In an SVG for the page each of them becomes a variable of
the page's style sheet, so that one picture serves light, dark and print; text stays text. Pictures are narrow, with
text of 10 points, so that they can be read on a phone without zooming.

The colours are those of Okabe and Ito, which people with any kind of colour blindness can tell apart; none means
anything by itself, since every line and bar is named too.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dataflex.utils.shown import shown

COLOURS = {
    "ink": ("#1b1f24", "#e6e9ed"),
    "faint": ("#59636e", "#a3adb8"),
    "line": ("#d1d9e0", "#3d444d"),
    "all": ("#848e98", "#7d8791"),
    "chosen": ("#0072b2", "#56b4e9"),
    "second": ("#d55e00", "#f0883e"),
    "third": ("#009e73", "#3fb68b"),
    "fourth": ("#cc79a7", "#d990b8"),
    "fifth": ("#b87f00", "#e9b949"),
    "sixth": ("#3b5998", "#8ea8dc"),
}
"""Names of the colours, for light and for dark ground.

Opaque, words ("ink", "faint") keep a contrast of 4.5:1 to the ground and series 3:1 (WCAG 2.2 AA); "line" is for frames
and grids, which carry nothing.
"""
SERIES = ("chosen", "second", "third", "fourth", "fifth", "sixth", "all")
"""Colours of things that stand side by side, in this order."""
WIDTH = 4.8
"""Inches; at 72 points an inch a picture is as wide as a phone."""
NAME = 22
"""Longest name beside a bar, in characters."""
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.usetex": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
}
_INK = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
_LINES = ("axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r'<svg [^>]*viewBox="([^"]+)"[^>]*>')
_GROUP_ID = re.compile(r'<g id="[^"]*"')


def colour(name: str) -> str:
    """The colour that matplotlib draws with."""
    return COLOURS[name][0]


@contextmanager
def look() -> Iterator[None]:
    """Within it figures are made and written in the report's look.

    A letter that matplotlib's own font lacks is measured as a box; the reader's fonts draw it.
    """
    inks: dict[Any, Any] = {**dict.fromkeys(_INK, colour("ink")), **dict.fromkeys(_LINES, colour("line"))}
    with mpl.rc_context({**_STYLE, **inks}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def canvas(height: float) -> tuple[Figure, Axes]:
    """A figure of one picture, ``height`` inches high, without a ground of its own."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.tick_params(length=0)
    return figure, axes


def name(text: object) -> str:
    """A name from data, as it can stand beside a bar."""
    return shown(text, NAME)


def svg(figure: Figure, key: str, label: str) -> str:
    """A figure as an element of the page.

    Args:
        figure: The picture.
        key: Tells its clip paths and markers from those of the page's other pictures.
        label: What a screen reader says of it.
    """
    buffer = io.StringIO()
    with look(), mpl.rc_context({"svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = _METADATA.sub("", text[text.index("<svg") :])
    text = _GROUP_ID.sub("<g", text)  # they are the same in every picture
    text = re.sub(r"font-family: [^;\"]+", "font-family: inherit", text)
    text = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
    for role, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{role})")
    opened = f'role="img" aria-label="{escape(label)}">'
    return _SIZE.sub(lambda found: f'<svg viewBox="{found[1]}" {opened}', text, count=1).strip()


def png(figure: Figure, dots: int = 150) -> bytes:
    """A figure as a PNG on white."""
    buffer = io.BytesIO()
    with look():
        figure.savefig(buffer, format="png", dpi=dots, facecolor="white")
    return buffer.getvalue()


def pixels(figure: Figure, dots: int = 150) -> NDArray[np.uint8]:
    """A figure as ``(height, width, 3)`` uint8 on white, as trackers take it."""
    with look():
        figure.set_dpi(dots)
        figure.set_facecolor("white")
        painter: Any = FigureCanvasAgg(figure)  # its methods have no types
        painter.draw()
    return np.asarray(painter.buffer_rgba())[:, :, :3].copy()
