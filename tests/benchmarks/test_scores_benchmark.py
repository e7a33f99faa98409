from __future__ import annotations

import re
import subprocess
import sys

import pytest

from helpers.scripts import ROOT


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_the_benchmark_prints_memory_and_ratio(tmp_path):
    script = ROOT / "benchmarks" / "scores.py"
    command = [sys.executable, str(script), "--rows", "9000", "--dim", "64", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "store: 9000 x 64 bfloat16, 1 MiB" in done.stdout
    assert re.search(r"^ratio: \d+\.\d$", done.stdout, re.MULTILINE)
    assert re.search(r"^memory above the baseline: \d+ MiB$", done.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []
