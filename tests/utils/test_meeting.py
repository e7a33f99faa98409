"""Processes that wait for one another, and one that never comes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from torch.distributed import HashStore

from dataflex.errors import DataflexError
from dataflex.utils import meeting

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say which process is which")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that goes on until it is killed."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def arrive(store: HashStore, rank: int) -> None:
    store.set(meeting.PROCESS.format(rank), meeting.process_name(os.getpid()))
    store.add(meeting.ARRIVED, 1)


def test_whoever_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "LOOK_SECONDS", 0.0)
    store = HashStore()
    late = threading.Timer(0.3, arrive, (store, 1))
    late.start()
    meeting.meet(store, 0, 2)
    assert store.add(meeting.ARRIVED, 0) == 2
    late.join()
    arrive(store, 1)
    meeting.meet(store, 0, 2)  # the next meeting has a count of its own
    assert store.add(meeting.ARRIVED, 0) == 4


def test_one_that_has_ended_is_named(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "LOOK_SECONDS", 0.0)
    store = HashStore()
    store.set(meeting.PROCESS.format(1), meeting.process_name(child.pid))
    child.kill()
    with pytest.raises(DataflexError, match=r"process 1 of 3 has ended while others wait"):
        meeting.meet(store, 0, 3)


def test_one_that_came_and_ended_is_no_loss(child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "LOOK_SECONDS", 0.0)
    store = HashStore()
    store.set(meeting.PROCESS.format(1), meeting.process_name(child.pid))
    store.add(meeting.ARRIVED, 1)
    child.kill()
    child.wait()
    meeting.meet(store, 0, 2)


def test_which_processes_have_ended(child: subprocess.Popen[bytes]) -> None:
    name = meeting.process_name(child.pid)
    machine, pid, start = name.split(" ")
    assert not meeting.has_ended(name)
    assert meeting.has_ended(f"{machine} {pid} {int(start) + 1}")  # another one got its pid
    assert not meeting.has_ended(f"elsewhere {pid} {int(start) + 1}")
    assert not meeting.has_ended("")
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert meeting.has_ended(name)  # nobody has asked how it ended yet
    child.wait()
    assert meeting.has_ended(name)
