"""Compiles csrc/cuda with a C++ compiler and the emulator of this folder, and runs jobs on it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cuda_sim.cases import FLOAT_SUMS, Job, Totals

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMMON_FLAGS = ("-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas")
VARIANTS = {
    "plain": ("-O1",),
    "asan": ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "tsan": ("-O1", "-g1", "-fsanitize=thread"),
}
EMULATOR_FLAGS = {"plain": (), "asan": ("-DEMULATE_ASAN",), "tsan": ("-DEMULATE_TSAN",)}
ENVIRONMENT = {
    # What a job leaks is none of the kernels' business; stacks of fibers are ordinary stacks.
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "UBSAN_OPTIONS": "print_stacktrace=0",
    "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0",
}
TIMEOUT = 240


class EmulationError(Exception):
    """A run that did not end well: a sanitizer's report, the emulator's complaint, a crash or a timeout."""


@dataclass(frozen=True)
class Emulator:
    """An executable that runs jobs.

    Attributes:
        program: The executable.
        scratch: Folder for jobs and results.
    """

    program: Path
    scratch: Path

    def run(
        self, job: Job, *, order: str = "forward", multiprocessors: int = 2, workspace_bytes: int | None = None
    ) -> Totals:
        """The totals of a job, its threads run in an order: ``forward``, ``reverse`` or the seed of a random one.

        ``workspace_bytes`` limits the workspace of ``rademacher`` and ``dots``.
        """
        request, result = self.scratch / "job", self.scratch / "result"
        request.write_bytes(job.to_bytes())
        result.unlink(missing_ok=True)
        environment = os.environ | ENVIRONMENT
        environment |= {"EMULATED_ORDER": order, "EMULATED_MULTIPROCESSORS": str(multiprocessors)}
        if workspace_bytes is not None:
            environment["EMULATED_WORKSPACE_BYTES"] = str(workspace_bytes)
        command = [str(self.program), str(request), str(result)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise EmulationError(f"no end after {TIMEOUT} s") from error
        if done.returncode != 0:
            raise EmulationError(f"exit status {done.returncode}: {done.stderr[:4000]}")
        return _totals(job, result.read_bytes())

    def plan(self, *arguments: object) -> dict[str, int]:
        """The numbers of a plan: kind, rows, offset, count, dim, multiprocessors."""
        command = [str(self.program), "--plan", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
        return {name: int(value) for name, value in (line.split() for line in done.stdout.splitlines())}


def _totals(job: Job, data: bytes) -> Totals:
    rows, dim = job.rows, job.dim
    kind = np.float64 if job.kind in FLOAT_SUMS else np.int64
    ends = np.cumsum([rows * dim * 8, rows, rows * 8])
    assert len(data) == ends[-1]

    def tensor(start: int, stop: int, dtype: type) -> Tensor:
        return torch.from_numpy(np.frombuffer(data[start:stop], dtype).copy())

    return Totals(
        tensor(0, ends[0], kind).reshape(rows, dim),
        tensor(ends[0], ends[1], np.uint8),
        tensor(ends[1], ends[2], np.int64),
    )


@dataclass(frozen=True)
class Builder:
    """Compiles emulators; object files are kept by what went into them.

    Attributes:
        compiler: The C++ compiler.
        cache: Folder for object files and executables.
    """

    compiler: str
    cache: Path

    def build(self, variant: str, csrc: Path = CSRC) -> Path:
        """The executable of a variant (:data:`VARIANTS`) from a copy of csrc."""
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda source: self._object(source, variant, csrc), self._sources(csrc)))
        program = self.cache / f"emulate-{self._digest(*(path.name for path in objects))}"
        if not program.exists():
            self._compile(program, *VARIANTS[variant], *map(str, objects))
        return program

    def _sources(self, csrc: Path) -> list[Path]:
        return [
            *sorted((csrc / "cuda").glob("*.cu")),
            csrc / "cuda" / "plan.cpp",
            HERE / "main.cpp",
            HERE / "emulator.cpp",
        ]

    def _object(self, source: Path, variant: str, csrc: Path) -> Path:
        # The emulator itself is compiled without sanitizers: it switches stacks.
        is_emulator = source.name == "emulator.cpp"
        flags = ("-O2", *EMULATOR_FLAGS[variant]) if is_emulator else VARIANTS[variant]
        headers = [*sorted(csrc.glob("*.h")), *sorted((csrc / "cuda").glob("*.h")), *sorted(HERE.rglob("*.h"))]
        contents = [path.read_text(encoding="utf-8") for path in (source, *headers)]
        path = self.cache / f"{source.stem}-{self._digest(self.compiler, *COMMON_FLAGS, *flags, *contents)}.o"
        if not path.exists():
            include = (f"-I{HERE / 'include'}", f"-I{csrc}")
            self._compile(path, *COMMON_FLAGS, *flags, *include, "-c", "-x", "c++", str(source))
        return path

    def _compile(self, target: Path, *arguments: str) -> None:
        partial = target.with_suffix(f".{os.getpid()}")
        command = [self.compiler, *arguments, "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
        assert done.stderr == "", done.stderr
        partial.replace(target)

    @staticmethod
    def _digest(*parts: str) -> str:
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def find_compiler() -> str | None:
    """A compiler that the emulator is known to work with."""
    return next((path for name in ("g++", "clang++") if (path := shutil.which(name))), None)
