"""What a phase of a cell costs: processor and wall seconds, and the peak of the process's memory meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROCESS = Path("/proc/self")
RESET_PEAK = "5"
"""Written to ``clear_refs`` it makes the peak resident set the current one (proc(5))."""


@contextmanager
def spent(phase: str) -> Iterator[dict[str, float]]:
    """Measure a phase; the dictionary that it yields is filled at its end.

    Keys are ``{phase}_processor`` and ``{phase}_seconds``, and on Linux ``{phase}_peak``, in MiB: the whole process,
    with the model and whatever earlier phases left behind.
    """
    linux = sys.platform == "linux"
    if linux:
        (PROCESS / "clear_refs").write_text(RESET_PEAK)
    costs: dict[str, float] = {}
    processor, wall = time.process_time(), time.perf_counter()
    yield costs
    costs[f"{phase}_processor"] = time.process_time() - processor
    costs[f"{phase}_seconds"] = time.perf_counter() - wall
    if linux:
        status = (PROCESS / "status").read_text().splitlines()
        costs[f"{phase}_peak"] = int(next(line for line in status if line.startswith("VmHWM:")).split()[1]) / 1024
