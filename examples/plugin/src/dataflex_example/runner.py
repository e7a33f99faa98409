"""What runs in the child process: an answer's code, then tests, each on its own.

Started as ``python -I -S runner.py FD``; the job comes on standard input, one line a passed test goes to FD. It imports
nothing but the standard library, and sets its own limits before the answer's code runs; a limit cannot be raised again.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any


def main() -> None:
    """Run the job; the process ends here, whatever threads and exit handlers the code has left."""
    report = int(sys.argv[1])
    job = json.load(sys.stdin)
    for name, value in job["limits"].items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (limit, limit))
    os.write(report, f"{job['token']} started\n".encode())
    scope: dict[str, Any] = {"__name__": "answer"}
    if _runs(job["code"], "<answer>", scope):
        for number, test in enumerate(job["tests"]):
            if _runs(test, f"<test {number}>", scope):
                os.write(report, f"{job['token']} {number}\n".encode())
    os._exit(0)


def _runs(code: str, name: str, scope: dict[str, Any]) -> bool:
    """Whether the code runs to its end; SystemExit and KeyboardInterrupt of the code are failures like any other."""
    try:
        exec(compile(code, name, "exec"), scope)
    except BaseException:
        return False
    return True


if __name__ == "__main__":
    main()
