"""What nvcc makes of the kernels: no spilled registers, and tensor-core instructions in the dense one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cuda_sim.harness import CSRC

ARCHITECTURES = ("80", "90")
FLAGS = ("-std=c++17", "-O3", "-fmad=false", "-Xptxas=-v", f"-I{CSRC}")
KERNELS = {"sjlt": 3, "rademacher": 4, "gaussian": 2, "dots": 5}
"""Kernels in each file, template instances counted."""


def compiled(name: str, folder: Path) -> tuple[str, str]:
    """ptxas' report and the PTX of one file, for all architectures."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on PATH")
    targets = [f"-gencode=arch=compute_{code},code=sm_{code}" for code in ARCHITECTURES]
    command = [nvcc, *FLAGS, *targets, "--keep", "--keep-dir", str(folder), "-c", str(CSRC / "cuda" / f"{name}.cu")]
    done = subprocess.run([*command, "-o", str(folder / "out.o")], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stderr, "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.ptx"))


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_no_register_is_spilled(name: str, tmp_path: Path) -> None:
    report, ptx = compiled(name, tmp_path)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) == KERNELS[name] * len(ARCHITECTURES), report
    assert all(spill == ("0", "0", "0") for spill in spills), report
    assert "fma.rn.f32" not in ptx or name == "gaussian", "a contraction changes bits"
    if name == "rademacher":
        for high_or_low in ("s8", "u8"):
            # For 1, 2 and 4 tiles of rows: 4, 4 and 2 sets, 2 halves, 2 columns, 2 rows of 16 outputs.
            found = ptx.count(f"mma.sync.aligned.m16n8k32.row.col.s32.u8.{high_or_low}.s32")
            assert found == (4 + 2 * 4 + 4 * 2) * 8 * len(ARCHITECTURES)
