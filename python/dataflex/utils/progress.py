"""How far a long phase is, and how long each phase took.

On a terminal (or in a notebook) a bar redraws itself. A log file would fill with its fragments: there a phase that
takes longer than a minute logs a line now and then.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

from dataflex.utils.shown import shown

logger = logging.getLogger(__name__)

LOG_INTERVAL_SECONDS = 60.0
TERMINAL_INTERVAL_SECONDS = 0.2
_OFF = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""What turns the bars of other packages off: read when they are imported, also by processes that are started."""
_wanted = True


class Progress(Protocol):
    """Counts what is done."""

    def update(self, n: float = 1) -> object:
        """``n`` more units are done."""


def bars_shown() -> bool:
    """Whether there are bars: on a terminal or in a notebook, unless they are not wanted."""
    return _wanted and (sys.stderr.isatty() or "ipykernel" in sys.modules)


@contextmanager
def bars(*, wanted: bool) -> Iterator[None]:
    """Within the block, no bars where they are not wanted or there is no terminal, those of other packages included."""
    global _wanted
    before, _wanted = _wanted, wanted
    changed = {name: os.environ.get(name) for name in _OFF} if not bars_shown() else {}
    os.environ.update({name: _OFF[name] for name in changed})
    try:
        yield
    finally:
        _wanted = before
        for name, value in changed.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def library_bars() -> Iterator[None]:
    """Around calls of transformers that have bars of their own: within the block they follow :func:`bars_shown`."""
    from transformers.utils import logging as library

    hide = not bars_shown() and library.is_progress_bar_enabled()
    if hide:
        library.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if hide:
            library.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def progress_bar(
    total: int,
    description: str,
    *,
    unit: str = "it",
    initial: int = 0,
    disable: bool = False,
    logged: bool = True,
) -> Iterator[Progress]:
    """Shows how far ``total`` units of work are, with the time that is left.

    Args:
        total: Units of work in all.
        description: What is being done, a few words.
        unit: Name of one unit.
        initial: Units that were already done (a resumed phase).
        disable: No output, for ranks other than the first.
        logged: Log lines where there is no bar; False for phases that log lines of their own.
    """
    if not (disable or bars_shown()):
        yield _Lines(total, shown(description), unit, initial, logged)
        return
    from tqdm import tqdm

    with tqdm(
        total=total,
        desc=shown(description),
        unit=unit,
        initial=initial,
        disable=disable,
        mininterval=TERMINAL_INTERVAL_SECONDS,
        dynamic_ncols=True,
    ) as bar:
        yield bar


def duration(seconds: float) -> str:
    """Seconds as ``h:mm:ss``."""
    return str(timedelta(seconds=round(seconds)))


class _Lines:
    """A line a minute: ``training gradients: 1,200 of 20,000 rows, 0:14:20 left``."""

    def __init__(self, total: int, description: str, unit: str, initial: int, logged: bool) -> None:
        self._total, self._description, self._unit, self._initial = total, description, unit, initial
        self._done: float = initial
        self._logged = logged
        self._start = self._last = time.monotonic()

    def update(self, n: float = 1) -> None:
        self._done += n
        now = time.monotonic()
        if not self._logged or now - self._last < LOG_INTERVAL_SECONDS or self._done <= self._initial:
            return
        self._last = now
        left = (now - self._start) / (self._done - self._initial) * (self._total - self._done)
        logger.info(
            "%s: %s of %s %ss, %s left",
            self._description,
            f"{self._done:,.0f}",
            f"{self._total:,}",
            self._unit,
            duration(left),
        )


class Stopwatch:
    """Wall-clock seconds by name of phase; a phase that is entered again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time under ``name``, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
