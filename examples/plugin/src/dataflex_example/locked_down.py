"""Python code in a child process with limits. This is no sandbox: see the README for what it does not hold back.

The child is an interpreter without site-packages and environment (``-I -S``, ``env={}``) in an empty temporary folder,
leader of a session and process group of its own. Limits on CPU time, memory, file size, open files and processes hold
before the code runs; after ``timeout`` seconds of wall time the group is killed. Where ``unshare`` may make user
namespaces, the child also has no network, and what it has started dies with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

RUNNER = Path(__file__).with_name("runner.py")
NAMESPACES = ("--user", "--map-current-user", "--net", "--pid", "--ipc", "--fork", "--kill-child")
REPORT_BYTES = 65536
"""What a pipe holds: a child that writes more waits, and is killed."""


class NotStartedError(Exception):
    """The interpreter did not get as far as the code."""


@dataclass(frozen=True)
class Limits:
    """What one child may use.

    Attributes:
        timeout: Wall-clock seconds.
        cpu_seconds: Seconds of CPU time.
        memory_mib: Address space.
        file_mib: Size of any file that it writes.
    """

    timeout: float = 10.0
    cpu_seconds: int = 5
    memory_mib: int = 512
    file_mib: int = 1

    def resources(self) -> dict[str, int]:
        """Values by the names of the module ``resource``."""
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory_mib << 20,
            "RLIMIT_FSIZE": self.file_mib << 20,
            "RLIMIT_NOFILE": 32,
            "RLIMIT_NPROC": 0,  # no processes, no threads; the superuser is exempt
            "RLIMIT_CORE": 0,
        }


def run_tests(code: str, tests: Sequence[str], limits: Limits, *, namespaces: bool = False) -> frozenset[int]:
    """Run code, then tests, and say which tests passed.

    Args:
        code: Python source; if it raises, no test passes.
        tests: Python sources (assertions), run after it in its global names, one by one.
        limits: What the child may use.
        namespaces: Start the child by ``unshare``.

    Returns:
        Numbers of the tests that ran to their end.

    Raises:
        NotStartedError: The interpreter did not start: limits that are too low, or a machine in trouble.
    """
    token = secrets.token_hex(8)  # code that prints to every file it finds does not pass by accident
    job = {"code": code, "tests": list(tests), "limits": limits.resources(), "token": token}
    wrapper = ["unshare", *NAMESPACES, "--"] if namespaces else []
    # The folder of a child that is still being killed may not be empty yet.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as given:
        given.write(json.dumps(job).encode())
        given.seek(0)
        read_end, write_end = os.pipe()
        try:
            process = _started([*_found(wrapper), sys.executable, "-I", "-S", str(RUNNER)], given, folder, write_end)
            _wait_and_kill(process, limits.timeout)
            lines = _pending(read_end)
        finally:
            os.close(read_end)
    said = [line.removeprefix(f"{token} ") for line in lines if line.startswith(f"{token} ")]
    if "started" not in said:
        raise NotStartedError(f"the interpreter did not start (exit status {process.returncode})")
    return frozenset(int(word) for word in said if word.isdigit() and int(word) < len(tests))


@lru_cache(maxsize=1)
def namespaces_work() -> bool:
    """Whether ``unshare`` is here and may make the namespaces; tried once."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run(["unshare", *NAMESPACES, "--", "true"], capture_output=True, check=False, timeout=30)
    return tried.returncode == 0


def _started(command: list[str], given: IO[bytes], folder: str, report: int) -> subprocess.Popen[bytes]:
    """The child; ``report`` is closed here, whatever happens."""
    try:
        return subprocess.Popen(
            [*command, str(report)],
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            pass_fds=[report],
            start_new_session=True,
        )
    finally:
        os.close(report)


def _found(command: list[str]) -> list[str]:
    """A command by its full path: the child has no PATH."""
    return [shutil.which(command[0]) or command[0], *command[1:]] if command else []


def _wait_and_kill(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Wait for the leader, or for so long, and kill its group before the leader's number is free again."""
    ended = os.pidfd_open(process.pid)
    try:
        select.select([ended], [], [], timeout)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    finally:
        os.close(ended)
    process.wait()


def _pending(read_end: int) -> list[str]:
    """The lines that are in a pipe, without waiting: a process that got away may keep it open."""
    os.set_blocking(read_end, False)
    try:
        return os.read(read_end, REPORT_BYTES).decode(errors="replace").splitlines()
    except BlockingIOError:
        return []
