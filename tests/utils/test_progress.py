from __future__ import annotations

import io
import logging
import os
import sys

import pytest

from dataflex.cli.app import _logging
from dataflex.utils import progress
from dataflex.utils.progress import bars, bars_shown, duration, library_bars, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Called in the test itself: pytest sets standard error anew between fixtures and test."""
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    with progress_bar(4, "tokenising", unit="row") as bar:
        bar.update(4)
    assert "tokenising: 100%|" in stderr.getvalue()


def test_a_log_file_gets_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(4, "tokenising") as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""


def test_a_notebook_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not bars_shown()
    monkeypatch.setitem(sys.modules, "ipykernel", io)
    assert bars_shown()


def test_quiet_means_no_bar_on_a_terminal_either(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    with bars(wanted=False), progress_bar(4, "tokenising") as bar:
        bar.update(4)
    assert stderr.getvalue() == ""
    assert bars_shown()


def test_a_rank_that_is_not_the_first_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    with progress_bar(4, "tokenising", disable=True) as bar:
        bar.update(4)
    assert stderr.getvalue() == ""


def test_a_long_phase_logs_a_line_now_and_then(monkeypatch, caplog) -> None:
    clock = iter([0.0, 30.0, 61.0, 90.0, 125.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "dataflex"), progress_bar(2000, "gradients", unit="row", initial=1000) as bar:
        for _ in range(4):
            bar.update(100)
    assert caplog.messages == [
        "gradients: 1,200 of 2,000 rows, 0:04:04 left",
        "gradients: 1,400 of 2,000 rows, 0:03:08 left",
    ]


def test_a_phase_with_lines_of_its_own_logs_no_others(monkeypatch, caplog) -> None:
    monkeypatch.setattr(progress, "LOG_INTERVAL_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, "dataflex"), progress_bar(2, "training", logged=False) as bar:
        bar.update(2)
    assert caplog.messages == []


def test_bars_of_other_packages_are_off_where_ours_are(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging as library

    monkeypatch.setenv("TQDM_DISABLE", "")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    with bars(wanted=True):
        assert os.environ["TQDM_DISABLE"] == os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert os.environ["TQDM_DISABLE"] == ""
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    before = library.is_progress_bar_enabled()
    with library_bars():
        assert not library.is_progress_bar_enabled()
    assert library.is_progress_bar_enabled() == before


def test_bars_of_other_packages_stay_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal(monkeypatch)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with bars(wanted=True):
        assert "TQDM_DISABLE" not in os.environ


def test_a_log_line_stands_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = terminal(monkeypatch)
    with _logging(logging.INFO), progress_bar(4, "training") as bar:
        bar.update(1)
        logging.getLogger("dataflex").info("step 1 of 4")
    lines = [line.split("\r")[-1] for line in stderr.getvalue().split("\n")]
    assert "step 1 of 4" in lines


def test_durations() -> None:
    assert duration(83.4) == "0:01:23"
    assert duration(90_000) == "1 day, 1:00:00"
