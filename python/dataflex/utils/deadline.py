"""A bound on the time that somebody else's text (a template) may compute for."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

RENDER_SECONDS = 10.0
"""CPU seconds that one rendering of a template may take; a long conversation takes milliseconds."""


@contextmanager
def cpu_limit(seconds: float = RENDER_SECONDS) -> Iterator[None]:
    """Raise TimeoutError in the block once the process has computed for so long since it began.

    The timer is one of CPU time, which nothing else here uses; timers are a matter of the main thread, in another one
    the block runs without a bound. A single operation inside C code ends before it is interrupted.

    Args:
        seconds: CPU seconds.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "ITIMER_VIRTUAL"):
        yield
        return

    def stop(number: int, frame: Any) -> None:
        del number, frame
        raise TimeoutError(f"it had not ended after {seconds:g} seconds of computing")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
