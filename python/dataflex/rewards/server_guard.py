"""Runs a command for as long as whoever started it lives: ``python server_guard.py COMMAND...``.

The parent holds the other end of this script's standard input. When it closes, because the parent asks for the end or
because it is gone, however it died, the command is asked to stop and then killed with everything that it started.
Only the standard library is used: the script runs in the command's own Python environment.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

STOP_SECONDS = 20.0
"""How long the command may take to stop when it is asked to."""


def main() -> None:
    """Run the command and exit with its code. This process leads a group of its own (the parent sees to it)."""
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    threading.Thread(target=_stop_at_end_of_input, args=(child,), daemon=True).start()
    code = child.wait()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)  # what the command left behind
    os._exit(code if code >= 0 else 128 - code)


def _stop_at_end_of_input(child: subprocess.Popen[bytes]) -> None:
    while os.read(0, 4096):
        pass
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
