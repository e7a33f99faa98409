from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.doctor import write_project

SCRIPT = """
import signal, sys
from dataflex.cli import app
from dataflex.training.trainer import Trainer

after, name = Trainer._after_step, sys.argv.pop()

def stop(self, values, phase):
    after(self, values, phase)
    if self.state.step == 3:
        signal.raise_signal(getattr(signal, name))

Trainer._after_step = stop
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell runs the tests in the background
app.main()
"""


@pytest.mark.integration
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_command_says_how_it_goes_on(tmp_path: Path, name: str, status: int) -> None:
    write_project(tmp_path, train_type="static", component_name=None, component_params={})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "train", "run.yaml", "num_train_epochs=2", name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if "stopped" in line]
    kept = f"checkpoint-2 in {tmp_path / 'out'} holds the run"
    assert lines == [f"warning: stopped; {kept}: resume_from_checkpoint: true goes on from it"]
    assert "Traceback" not in done.stderr
    assert "Aborted" not in done.stderr
