"""By how much a call raises the peak memory of the process, or of its tensors.

The resident set of a process depends on what ran before: the allocator keeps freed memory, in pieces that the next call
can use or not. Two passes over the same batches differed by -18 to 158 MiB where their tensors differed by 1 MiB, so
calls whose memory is all tensors are compared by these.
"""

from __future__ import annotations

import ctypes
import sys
from itertools import accumulate
from pathlib import Path
from types import TracebackType

import torch

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): makes the peak resident set size the current one


class PeakMemory:
    """Context in which ``extra`` is measured: peak minus what was in use at the start (``start``), in bytes.

    On the CPU the resident set of the process, on Linux alone (None elsewhere); memory that the allocator had kept is
    given back first, so that it does not hide what the call takes. On a GPU what torch's allocator handed out.
    """

    def __init__(self, device: torch.device) -> None:
        self.extra: int | None = None
        self._device = device
        self.start = 0

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self.start = torch.cuda.memory_allocated(self._device)
        elif sys.platform == "linux":
            getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)  # glibc alone has it
            _CLEAR_REFS.write_text(_RESET_PEAK)
            self.start = resident("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self.extra = torch.cuda.max_memory_allocated(self._device) - self.start
        elif sys.platform == "linux":
            self.extra = max(resident("VmHWM") - self.start, 0)


class TensorMemory:
    """Context in which ``extra`` is measured: the most bytes that tensors held at once, above those at the start.

    On the CPU what torch's allocator handed out, by its profiler, which slows the call down. Buffers of other code
    (the private totals of the kernels: rows x k x 8 bytes a thread beside the first, at most 64 MiB) do not count.
    """

    def __init__(self, device: torch.device) -> None:
        self.extra: int | None = None
        self._on_gpu = PeakMemory(device) if device.type == "cuda" else None
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> TensorMemory:
        (self._on_gpu or self._profile).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._on_gpu or self._profile).__exit__(kind, error, trace)
        if self._on_gpu is not None:
            self.extra = self._on_gpu.extra
            return
        events = [event for event in self._profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        self.extra = max(accumulate(changes), default=0)


def resident(key: str) -> int:
    """A line of the process's status in bytes: ``VmRSS`` is what is in use, ``VmHWM`` its peak (Linux alone)."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
