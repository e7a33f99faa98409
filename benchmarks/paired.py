"""Paired timings of several ways to do the same work, with the memory that each takes."""

from __future__ import annotations

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

_PAGE = 4096


@dataclass
class Timing:
    """Seconds of each round, and the most memory that a round took above what was in use before it."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def ratio(self, base: Timing, clock: str) -> float:
        """Median over rounds of this time by that of ``base`` in the same round."""
        pairs = zip(getattr(self, clock), getattr(base, clock), strict=True)
        return statistics.median(mine / other for mine, other in pairs)


class PeakMemory:
    """Samples the resident memory of the process; ``bytes`` is the peak above the start."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()

    def __enter__(self) -> PeakMemory:
        gc.collect()
        give_back()
        self._start = resident_bytes()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.bytes = max(self.bytes, resident_bytes() - self._start)


def give_back() -> None:
    """Return freed memory to the system, so that what one pass has left over does not hide what the next one takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc
    if trim is not None:
        trim(0)


def resident_bytes() -> int:
    """Memory that the process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * _PAGE


def paired(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Time every function once a round, in turns, so that other work on the machine hits all of them alike."""
    timings = {name: Timing() for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            with PeakMemory() as memory:
                cpu, wall = time.process_time(), time.perf_counter()
                function()
                timings[name].cpu.append(time.process_time() - cpu)
                timings[name].wall.append(time.perf_counter() - wall)
            timings[name].peak_bytes = max(timings[name].peak_bytes, memory.bytes)
    return timings


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
