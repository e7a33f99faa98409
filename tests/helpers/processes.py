"""Commands that torchrun starts several times."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from helpers.scripts import ROOT


def launch(
    processes: int, *arguments: str, cwd: Path | None = None, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """Run Python in processes that find these helpers; they have to end well.

    Args:
        processes: How many; one is started without torchrun.
        *arguments: Python's arguments.
        cwd: Working directory.
        timeout: Seconds.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [sys.executable, *(launcher if processes > 1 else []), *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done
