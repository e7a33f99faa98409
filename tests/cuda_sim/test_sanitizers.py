"""The emulated kernels under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuda_sim.cases import broken, differs, make
from cuda_sim.harness import Builder, Emulator
from cuda_sim.mutations import JOBS

# Small, but with cut tiles, several blocks and tiles of all kinds. Those of the planted bugs have to be clean without.
CLEAN = JOBS | {
    "sjlt 5 rows": make("sjlt", 5, 300, offset=37, dim=128, gap=2),
    "rademacher 33 rows": broken(make("rademacher", 33, 130, offset=3, dim=33)),
    "gaussian 33 rows": make("gaussian", 33, 70, offset=5, dim=65),
    "dots 9 rows": broken(make("dots", 9, 4096 + 130, dim=11, variant="adamw", gap=2)),
}


@pytest.mark.parametrize("variant", ["plain", "asan", "tsan"])
@pytest.mark.parametrize("name", CLEAN)
def test_emulated_kernels_are_clean(builder: Builder, tmp_path: Path, name: str, variant: str) -> None:
    job = CLEAN[name]
    found = Emulator(builder.build(variant), tmp_path).run(job, order="3")
    assert differs(job, found, job.reference()) is None
