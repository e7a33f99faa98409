"""Every planted bug is caught: the tests of this folder would notice it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from cuda_sim.cases import differs
from cuda_sim.harness import CSRC, Builder, EmulationError, Emulator
from cuda_sim.mutations import JOBS, MUTATIONS, Mutation

DETECTORS = {
    "values": ("plain", ("forward",)),
    "order": ("plain", ("reverse", "1", "2")),
    "asan": ("asan", ("forward",)),
    "tsan": ("tsan", ("forward",)),
}


def mutated(mutation: Mutation, folder: Path) -> Path:
    """A copy of csrc with the bug."""
    copy = folder / "csrc"
    shutil.copytree(CSRC, copy, dirs_exist_ok=True)
    path = copy / "cuda" / mutation.file
    source = path.read_text(encoding="utf-8")
    assert source.count(mutation.old) == 1, f"{mutation.file} has this text {source.count(mutation.old)} times"
    path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
    return copy


def catches(builder: Builder, csrc: Path, detector: str, mutation: Mutation) -> bool:
    """Whether a detector notices."""
    job = JOBS[mutation.job]
    variant, orders = DETECTORS[detector]
    emulator = Emulator(builder.build(variant, csrc), csrc.parent)
    for order in orders:
        try:
            found = emulator.run(job, order=order)
        except EmulationError as error:
            # A report or the emulator's complaint; not a crash of something else.
            return any(sign in str(error) for sign in ("Sanitizer", "runtime error", "emulator:"))
        if variant == "plain" and differs(job, found, job.reference()) is not None:
            return True
    return False


def cases() -> list[ParameterSet]:
    marks = {True: [], False: [pytest.mark.exhaustive]}
    return [pytest.param(mutation, id=mutation.name, marks=marks[mutation.core]) for mutation in MUTATIONS]


@pytest.mark.parametrize("mutation", cases())
def test_a_planted_bug_is_caught(builder: Builder, tmp_path: Path, mutation: Mutation) -> None:
    assert catches(builder, mutated(mutation, tmp_path), mutation.caught_by, mutation)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_planted_bug_can_be_planted(tmp_path: Path, mutation: Mutation) -> None:
    assert mutated(mutation, tmp_path).is_dir()
