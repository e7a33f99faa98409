"""Processes that wait until all of them are here, in the store of their process group.

One of them may work for as long as it takes. One that has ended will never come: a launcher such as torchrun ends the
others, and without one they find out themselves, where the dead process was on their machine (Linux). A process writes
down which one it is, by the machine's boot, its pid namespace, its pid and the moment of its start, which no later
process shares.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Protocol

from dataflex.errors import DataflexError

ARRIVED = "dataflex/arrived"
"""Key of the store under which arrivals are counted, those of all meetings together."""
PROCESS = "dataflex/process/{}"
"""Key of the store under which a rank's process is written down."""
LONGEST_PAUSE = 0.1
"""Seconds between two looks at the store."""
LOOK_SECONDS = 2.0
"""Seconds of waiting between two looks at the others."""


class Store(Protocol):
    """What of ``torch.distributed.Store`` is used."""

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter; returns what it is then."""

    def set(self, key: str, value: str, /) -> None:
        """Keep a value."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all have a value."""

    def get(self, key: str, /) -> bytes:
        """A value."""


def meet(store: Store, index: int, count: int) -> None:
    """Wait until every process is here, for any time.

    Args:
        store: The store that all of them see.
        index: This process's rank.
        count: How many there are.

    Raises:
        DataflexError: One that has not come has ended, on this machine.
    """
    store.set(PROCESS.format(index), process_name(os.getpid()))
    arrived = store.add(ARRIVED, 1)
    everyone = -(-arrived // count) * count
    pause, looked = 0.001, time.monotonic()
    while arrived < everyone:
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
        ended = None
        if time.monotonic() - looked > LOOK_SECONDS:
            ended, looked = _ended(store, count), time.monotonic()
        arrived = store.add(ARRIVED, 0)  # read last: one may have come and then ended
        if ended is not None and arrived < everyone:
            raise DataflexError(
                f"process {ended} of {count} has ended while others wait for it",
                hint="its own output says why; it may have been killed, for want of memory perhaps",
            )


def process_name(pid: int) -> str:
    """What tells a process from all others of all machines; empty where that is not known."""
    with suppress(OSError):
        return f"{_machine()} {pid} {_stat(pid)[1]}"
    return ""


def has_ended(name: str) -> bool:
    """Whether the process of :func:`process_name` has ended; False for those of other machines."""
    machine, _, rest = name.partition(" ")
    with suppress(OSError):
        if not name or machine != _machine():
            return False
        pid, start = rest.split(" ")
        try:
            state, found = _stat(int(pid))
        except OSError:  # there is none of that pid
            return True
        return state in "ZX" or found != start
    return False


def _ended(store: Store, count: int) -> int | None:
    """The first rank whose process has ended."""
    keys = {rank: PROCESS.format(rank) for rank in range(count)}
    known = (rank for rank, key in keys.items() if store.check([key]))
    return next((rank for rank in known if has_ended(store.get(keys[rank]).decode())), None)


@cache
def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def _stat(pid: int) -> tuple[str, str]:
    """State of a process, and when it started, in ticks since the boot (proc(5))."""
    behind = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return behind[0], behind[19]
