"""Memory and time of scoring a large feature store, beside a plain read of the same bytes.

Usage: python benchmarks/scores.py [--rows 200000] [--dim 4096] [--dtype bfloat16] [--directions 8] [--folder DIR]

A synthetic store is written into a temporary folder, then verified and scored in a process of its own, whose
largest resident memory is compared with that before the first byte is read (Linux only). The files are dropped from the
page cache before each reading.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dataflex.gradients.layout import by_length
from dataflex.gradients.similarity import Influence, influence_scores, target_directions
from dataflex.gradients.store import DTYPES, FeatureDtype, FeatureStore

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """Size of the store."""

    rows: int
    dim: int
    dtype: FeatureDtype

    def open(self, folder: Path) -> FeatureStore:
        """The store in ``folder``, with rows where those of 20 to 600 tokens lie."""
        lengths = np.random.default_rng(0).integers(20, 600, self.rows)
        return FeatureStore(folder, {"benchmark": "scores"}, by_length(lengths, 2048), self.dim, self.dtype)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one reading of the store cost."""

    seconds: float
    cpu_seconds: float
    memory_above_baseline: float


def fill(size: Size, folder: Path) -> None:
    """Write random features."""
    store = size.open(folder)
    generator = torch.Generator().manual_seed(0)
    for start, stop in store.missing():
        store.write(start, torch.randn((stop - start, size.dim), generator=generator))


def score(size: Size, folder: Path, directions: int) -> Cost:
    """Verify and score the store; meant for a fresh process."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn((directions, size.dim), generator=generator)
    vectors = target_directions([(0, targets)], "max")
    influence_scores([Influence([(0, targets)], vectors)], directions)  # what the first call of anything costs
    drop_from_cache(folder)
    # The import of torch must not count: the peak starts over here.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    start, cpu = time.perf_counter(), time.process_time()
    store = size.open(folder)
    scores = influence_scores([Influence(store.blocks(), vectors)], size.rows)
    assert not scores.not_finite
    return Cost(time.perf_counter() - start, time.process_time() - cpu, resident("VmHWM") - before)


def read(folder: Path) -> Cost:
    """Read every byte of the store once."""
    buffer = bytearray(MIB)
    drop_from_cache(folder)
    start, cpu = time.perf_counter(), time.process_time()
    for file in sorted(folder.glob("features-*")):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return Cost(time.perf_counter() - start, time.process_time() - cpu, 0)


def drop_from_cache(folder: Path) -> None:
    """Let the next reading come from the disk."""
    for file in folder.glob("features-*"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def resident(field: str) -> float:
    """Resident memory of this process in MiB: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    """Write, score, read, print."""
    parser = argparse.ArgumentParser(description="Score a large synthetic feature store.")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16")
    parser.add_argument("--directions", type=int, default=8, help="tasks of the evaluation set")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary store is made")
    arguments = parser.parse_args()
    size = Size(arguments.rows, arguments.dim, arguments.dtype)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name) / "store"
        start = time.perf_counter()
        fill(size, folder)
        written = sum(file.stat().st_size for file in folder.iterdir()) / MIB
        print(f"store: {size.rows} x {size.dim} {size.dtype}, {written:.0f} MiB ({time.perf_counter() - start:.0f} s)")
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
            scored = fresh.submit(score, size, folder, arguments.directions).result()
        plain = read(folder)
    print(f"scores: {scored.seconds:.1f} s ({scored.cpu_seconds:.1f} s of CPU), {written / scored.seconds:.0f} MiB/s")
    print(f"plain read: {plain.seconds:.1f} s ({plain.cpu_seconds:.1f} s of CPU)")
    print(f"ratio: {scored.seconds / plain.seconds:.1f}")
    print(f"memory above the baseline: {scored.memory_above_baseline:.0f} MiB")


if __name__ == "__main__":
    main()
