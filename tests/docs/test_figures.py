from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from helpers.scripts import ROOT, load_script

make_figures = load_script("docs/figures/make_figures.py")
measured = load_script("docs/figures/measured.py")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", make_figures.FIGURES)
def test_the_committed_figure_is_what_the_script_draws(name: str) -> None:
    assert (ROOT / "docs" / "figures" / name).read_text(encoding="utf-8") == make_figures.FIGURES[name]().svg()


@pytest.mark.parametrize("name", make_figures.FIGURES)
def test_a_figure_is_well_formed_and_stays_inside_its_frame(name: str) -> None:
    root = ET.fromstring(make_figures.FIGURES[name]().svg())
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert root.find(f"{SVG}title") is not None
    boxes = [[float(rect.attrib[key]) for key in ("x", "y", "width", "height")] for rect in root.iter(f"{SVG}rect")]
    assert boxes
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)


def test_text_is_escaped() -> None:
    drawing = make_figures.Drawing(100, 50, "a < b", "c & d")
    drawing.text(1, 2, "x < y & z")
    assert [element.text for element in ET.fromstring(drawing.svg()).iter(f"{SVG}text")] == ["x < y & z"]


def test_the_points_lie_in_their_panel_and_near_the_diagonal() -> None:
    for dim in (256, 4096):
        pairs = measured.cosine_pairs(dim)
        assert all(measured.LOW < value < measured.HIGH for pair in pairs for value in pair)
        inside = sum(abs(found - true) < dim**-0.5 for true, found in pairs) / len(pairs)
        assert 0.55 < inside < 0.85  # 68 % of a normal error; less noise at larger cosines


def test_reliable_targets_rank_well_and_unreliable_ones_by_chance() -> None:
    points = measured.ranked_targets()
    unreliable, reliable = (
        [auc for found, auc in points if low < found <= high] for low, high in ((-1, 0.1), (0.8, 1))
    )
    assert min(reliable) > 0.95
    assert sum(unreliable) / len(unreliable) < 0.8
