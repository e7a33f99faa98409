"""Progress bars with ETA for long phases, and how long each phase took.

On a terminal a bar redraws itself; in a log file it prints a line now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from dataflex.utils.shown import shown

LOG_INTERVAL_SECONDS = 15.0
TERMINAL_INTERVAL_SECONDS = 0.2


def progress_bar(
    total: int, description: str, *, unit: str = "it", initial: int = 0, disable: bool = False
) -> tqdm[Any]:
    """A bar over ``total`` units of work that shows rate and ETA.

    Args:
        total: Units of work in all.
        description: What is being done, a few words.
        unit: Name of one unit.
        initial: Units that were already done (a resumed phase).
        disable: No output, for ranks other than the first.
    """
    interval = TERMINAL_INTERVAL_SECONDS if sys.stderr.isatty() else LOG_INTERVAL_SECONDS
    return tqdm(
        total=total,
        desc=shown(description),
        unit=unit,
        initial=initial,
        disable=disable,
        mininterval=interval,
        dynamic_ncols=True,
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
