"""A server in a process of its own: started, waited for, and stopped with everything that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dataflex.errors import RewardError

POLL_SECONDS = 0.2
STOP_SECONDS = 30.0
"""Longer than the guard gives the command."""

_SHOWN_LINES = 15
_GUARD = Path(__file__).with_name("server_guard.py")


class ServerProcess:
    """Runs a command until :meth:`stop`, the end of this process, or its death by whatever signal.

    Args:
        python: The Python that runs the guard, and the command.
        arguments: Arguments of that Python.
        environment: Variables that are added to this process's.
        log: File that takes the command's output; readable by its owner only.
    """

    def __init__(self, python: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            log.unlink(missing_ok=True)
            log.touch(mode=0o600)
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [python, str(_GUARD), python, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **environment},
                    start_new_session=True,
                )
        except OSError as error:
            raise RewardError(f"{python!r} cannot be run: {error}", hint="server_python names a Python") from error
        self._finalizer = weakref.finalize(self, _stop, self._process)

    def wait_until(self, is_ready: Callable[[], bool], timeout: float) -> None:
        """Wait for ``is_ready``.

        Raises:
            RewardError: The process ended before, or ``timeout`` seconds went by; the log's last lines are shown.
        """
        end = time.monotonic() + timeout
        while not is_ready():
            code = self._process.poll()
            if code is not None:
                raise RewardError(f"the server ended with code {code} while it started; {self._shown_log()}")
            if time.monotonic() > end:
                self.stop()
                raise RewardError(
                    f"the server was not ready after {timeout:g} s; {self._shown_log()}", hint="server_start_timeout"
                )
            time.sleep(POLL_SECONDS)

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ask the server to stop, then make it; returns when it is gone."""
        self._finalizer()

    def _shown_log(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN_LINES:]
        return "\n".join([f"the end of its log {self.log}:", *(f"    {line}" for line in lines)])


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()  # the guard sees it
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
