"""The CPU kernels under the sanitizers of the host compiler, in a program of their own: no Python, no torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
X86 = platform.machine() in ("x86_64", "AMD64")
FLAGS = ["-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-pthread", "-w"]
ISA_FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mprefer-vector-width=512"],
    "amx": ["-mavx512f", "-mprefer-vector-width=512", "-include", str(HERE / "amx_emulation.h")],
}
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")


def instruction_sets() -> list[str]:
    """What this processor can run."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if X86 and info.exists() else []
    return ["portable", *(name for name, flag in (("avx2", "avx2"), ("avx512", "avx512f")) if flag in flags)]


def compile_object(source: Path, target: Path, sanitizer: str) -> Path:
    isa = next((name for name in ISA_FLAGS if source.stem.endswith(f"_{name}")), None)
    flags = [*FLAGS, *(ISA_FLAGS[isa] if isa else []), *(["-DDATAFLEX_X86"] if X86 else [])]
    command = [str(COMPILER), *flags, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, "-c", str(source), "-o", str(target)], check=True)
    return target


def sources() -> list[Path]:
    kernels = [path for path in sorted((ROOT / "csrc/cpu").glob("*.cpp")) if path.stem != "isa"]
    return [
        HERE / "kernels.cpp",
        *(p for p in kernels if X86 or not p.stem.endswith(tuple(f"_{i}" for i in ISA_FLAGS))),
    ]


@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_kernels_are_clean_and_agree(sanitizer: str, tmp_path: Path) -> None:
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    built = subprocess.run(
        [COMPILER, f"-fsanitize={sanitizer}", str(probe), "-o", str(tmp_path / "probe")], capture_output=True
    )
    if built.returncode or subprocess.run([tmp_path / "probe"], capture_output=True).returncode:
        pytest.skip(f"{COMPILER} cannot build or run programs with -fsanitize={sanitizer}")
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda path: compile_object(path, tmp_path / f"{path.stem}.o", sanitizer), sources()))
    program = tmp_path / "kernels"
    subprocess.run(
        [COMPILER, f"-fsanitize={sanitizer}", "-pthread", *map(str, objects), "-o", str(program)], check=True
    )
    result = subprocess.run([program, ",".join(instruction_sets())], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
