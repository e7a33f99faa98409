"""The page in a browser: it asks for nothing, nothing is complained about, and paper shows what is folded.

Run by hand (``pytest -m exhaustive tests/report/test_browser.py``): it needs Chromium and poppler's pdftotext.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from dataflex.curriculum.selection_file import write_selection
from dataflex.report.page import refresh_page
from dataflex.selectors.base import Selection
from dataflex.testing import tiny_dataset

BROWSER, READER = shutil.which("chromium"), shutil.which("pdftotext")
FOLDED = "rows that nobody could read"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """The page of a run with one selection, and a count among its folded details."""
    scores = np.random.default_rng().normal(size=60)
    found = Selection(np.argsort(scores)[::-1][:9].copy(), scores, "less", 2, 1, {"left_out": {FOLDED: 1_234}})
    write_selection(tmp_path / "selections" / "step-2.parquet", found, tiny_dataset(60), "task")
    assert refresh_page(tmp_path) is not None
    return tmp_path / "report.html"


def printed(page: Path) -> tuple[str, str]:
    """The text that stands on paper, and what the browser's console said."""
    assert BROWSER is not None
    assert READER is not None
    paper = page.with_suffix(".pdf")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--print-to-pdf={paper}"]
    done = subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    text = subprocess.run([READER, "-layout", paper, "-"], capture_output=True, text=True, check=True).stdout
    return text, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.exhaustive
@pytest.mark.skipif(None in (BROWSER, READER), reason="chromium and pdftotext are needed")
def test_the_browser_has_nothing_to_say_and_paper_shows_what_is_folded(page: Path) -> None:
    text, console = printed(page)
    assert console == ""
    assert "Which rows were chosen?" in text
    assert FOLDED in text
    assert "1,234" in text
    whole = page.read_text(encoding="utf-8")
    page.write_text(whole.replace("<main>", '<main><img src="https://example.org/x.png">'), encoding="utf-8")
    assert "example.org" in printed(page)[1], "a request that leaves the file would not be seen"
