"""The documentation builds without a warning, and what is built is complete."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helpers.scripts import ROOT

OPTIONS = ["-W", "--keep-going", "-n", "-q", "-b", "html"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    out = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        *OPTIONS,
        "-d",
        str(out / "doctrees"),
        str(ROOT / "docs"),
        str(out / "html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


class _Links(HTMLParser):
    """Targets and anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(str(given["id"]))
        for key in ("href", "src"):
            if given.get(key):
                self.targets.append(str(given[key]))


def _read(page: Path) -> _Links:
    links = _Links()
    links.feed(page.read_text(encoding="utf-8"))
    return links


@pytest.mark.slow
@pytest.mark.integration
def test_every_link_inside_leads_to_something(site: Path) -> None:
    read = {page: _read(page) for page in site.rglob("*.html")}
    assert len(read) > 30
    broken = []
    for page, links in read.items():
        for target in links.targets:
            file, _, anchor = target.partition("#")
            if "://" in target or target.startswith(("mailto:", "data:")):
                continue
            path = (page.parent / file.split("?")[0]).resolve() if file else page
            if not path.exists() or (anchor and path in read and anchor not in read[path].anchors):
                broken.append(f"{page.relative_to(site)}: {target}")
    assert broken == []


@pytest.mark.slow
@pytest.mark.integration
def test_generated_parts_are_there(site: Path) -> None:
    text = (site / "configuration.html").read_text(encoding="utf-8")
    assert "early_stopping_min_delta" in text
    assert "generated:" not in text
    assert "Where it differs" in (site / "selectors" / "less.html").read_text(encoding="utf-8")
    assert "dataflex.Trainer" in (site / "api.html").read_text(encoding="utf-8")
