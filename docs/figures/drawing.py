"""A drawing that grows by boxes, lines and text, and becomes an SVG document.

The background stays transparent. Text stands in filled boxes, or in a grey that reads on white and on black, so that
one file serves the light and the dark theme.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

BLUE, PURPLE, GREEN, SLATE = "#2f6fb7", "#7d52b8", "#1f7f5c", "#57606a"
LINE = "#7d8590"  # contrast of 3.8 on white and of 5.0 on GitHub's dark background
FONT = "-apple-system, 'Segoe UI', Helvetica, Arial, 'Liberation Sans', sans-serif"


@dataclass(frozen=True)
class Box:
    """A filled box with a bold first line and smaller lines below it, centred."""

    x: int
    y: int
    width: int
    height: int
    fill: str
    title: str
    lines: tuple[str, ...] = ()

    @property
    def left(self) -> tuple[int, int]:
        """Middle of the left side."""
        return self.x, self.y + self.height // 2

    @property
    def right(self) -> tuple[int, int]:
        """Middle of the right side."""
        return self.x + self.width, self.y + self.height // 2

    @property
    def top(self) -> tuple[int, int]:
        """Middle of the upper side."""
        return self.x + self.width // 2, self.y

    @property
    def bottom(self) -> tuple[int, int]:
        """Middle of the lower side."""
        return self.x + self.width // 2, self.y + self.height


@dataclass
class Drawing:
    """An SVG document that grows by one element at a time; later elements cover earlier ones."""

    width: int
    height: int
    title: str
    description: str
    elements: list[str] = field(default_factory=list)

    def box(self, box: Box) -> Box:
        """Draw a box and return it."""
        self.elements.append(
            f'<rect x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="8" fill="{box.fill}"/>'
        )
        center = box.x + box.width // 2
        first = box.y + box.height / 2 - 17 * len(box.lines) / 2 + 5
        self.text(center, first, box.title, size=14, weight=600, fill="#ffffff")
        for number, line in enumerate(box.lines, start=1):
            self.text(center, first + 17 * number, line, size=12, fill="#eef2f6")
        return box

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 12,
        weight: int = 400,
        fill: str = LINE,
        anchor: str = "middle",
    ) -> None:
        """Write one line; ``y`` is its baseline."""
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def arrow(self, *points: tuple[int, int]) -> None:
        """Draw straight lines from point to point, with a head at the last one."""
        path = " L ".join(f"{x} {y}" for x, y in points)
        self.elements.append(
            f'<path d="M {path}" fill="none" stroke="{LINE}" stroke-width="2" stroke-linejoin="round" '
            'marker-end="url(#head)"/>'
        )

    def panel(self, x: int, y: int, width: int, height: int) -> None:
        """Tint an area."""
        self.elements.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="12" fill="{LINE}" fill-opacity="0.10" '
            f'stroke="{LINE}" stroke-opacity="0.45"/>'
        )

    def zoom(self, source: Box, x_left: int, x_right: int, y: int) -> None:
        """Draw two dashed lines that open from the lower corners of a box to a panel."""
        lower = source.y + source.height
        for start, end in ((source.x + 8, x_left), (source.x + source.width - 8, x_right)):
            self.elements.append(
                f'<path d="M {start} {lower} L {end} {y}" stroke="{LINE}" stroke-opacity="0.7" stroke-dasharray="4 4"/>'
            )

    def svg(self) -> str:
        """The document as text."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" font-family="{FONT}">'
        )
        marker = (
            '<defs><marker id="head" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="6.5" markerHeight="6.5" '
            f'orient="auto"><path d="M 0 0.8 L 9 5 L 0 9.2 z" fill="{LINE}"/></marker></defs>'
        )
        about = f"<title>{escape(self.title)}</title>\n<desc>{escape(self.description)}</desc>"
        return "\n".join([head, about, marker, *self.elements, "</svg>"]) + "\n"
