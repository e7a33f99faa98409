"""By how much a call raises the peak memory of the process."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from types import TracebackType

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): makes the peak resident set size the current one


class PeakMemory:
    """Context in which ``extra`` is measured: peak minus what was in use at the start, in bytes.

    On the CPU the resident set of the process, on Linux alone (None elsewhere); memory that the allocator had kept is
    given back first, so that it does not hide what the call takes. On a GPU what torch's allocator handed out.
    """

    def __init__(self, device: torch.device) -> None:
        self.extra: int | None = None
        self._device = device
        self._start = 0

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        elif sys.platform == "linux":
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)  # glibc alone has it
            _CLEAR_REFS.write_text(_RESET_PEAK)
            self._start = _resident("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.extra = torch.cuda.max_memory_allocated(self._device) - self._start
        elif sys.platform == "linux":
            self.extra = max(_resident("VmHWM") - self._start, 0)


def _resident(key: str) -> int:
    """A line of the process's status in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
