"""The emulated kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuda_sim.cases import broken, differs, make
from cuda_sim.harness import Builder, Emulator

# Small, but with cut tiles, several blocks and both paths through shared memory.
JOBS = {
    "sjlt": make("sjlt", 5, 4096 * 2 + 133, offset=37, dim=128, variant="adamw"),
    "sjlt windows": make("sjlt", 3, 70, offset=3, dim=16384 + 16, sparsity=1, gap=2),
    "rademacher 8 rows": make("rademacher", 3, 260, offset=100, dim=40, variant="less"),
    "rademacher 32 rows": broken(make("rademacher", 33, 130, offset=3, dim=33)),
    "gaussian": make("gaussian", 33, 70, offset=5, dim=65),
}


@pytest.mark.parametrize("variant", ["asan", "tsan"])
@pytest.mark.parametrize("name", JOBS)
def test_emulated_kernels_are_clean(builder: Builder, tmp_path: Path, name: str, variant: str) -> None:
    job = JOBS[name]
    found = Emulator(builder.build(variant), tmp_path).run(job, order="3")
    assert differs(job, found, job.reference()) is None
