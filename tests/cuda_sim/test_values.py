"""The CUDA kernels, emulated, against the reference: bit by bit (gaussian: to its tolerance)."""

from __future__ import annotations

import pytest
import torch

from cuda_sim.cases import Job, broken, differs, make
from cuda_sim.harness import Emulator
from cuda_sim.mutations import towards_one_side

CASES = {
    "one row, smallest": make("sjlt", 1, 1, dim=16, sparsity=1),
    "rows of one tile, first group cut": make("sjlt", 3, 301, offset=7, dim=1024, variant="adamw"),
    "two rows, last batch cut": make("sjlt", 2, 1025, dim=1152, sparsity=9, variant="less"),
    "more tiles of rows, bfloat16": make("sjlt", 33, 260, offset=130, dim=4096, dtype=torch.bfloat16),
    "few rows fit, gaps": make("sjlt", 5, 700, offset=2**40 + 5, dim=8192, gap=3),
    "windows of outputs": make("sjlt", 3, 500, offset=16, dim=16384 + 8 * 16, sparsity=8, dtype=torch.float16),
    "many repetitions": make("sjlt", 2, 200, dim=16 * 21, sparsity=21),
    "several splits": make("sjlt", 2, 16384 + 77, offset=3, dim=128, variant="adamw"),
    "sjlt saturated": make("sjlt", 4, 300, dim=128, finer=3),
    "sjlt not finite": broken(make("sjlt", 4, 300, dim=128, variant="adamw")),
    "signs of one row": make("rademacher", 1, 129, dim=1000),
    "tile of 8, span cut at both ends": make("rademacher", 7, 300, offset=100, dim=2049, variant="adamw"),
    "full tile of 8": make("rademacher", 8, 128, dim=32, variant="less"),
    "second moment": make("sjlt", 3, 300, offset=9, dim=256, variant="second_moment"),
    "two tiles of 8": make("rademacher", 9, 257, offset=127, dim=1040, dtype=torch.float16),
    "four tiles of 8, gaps": make("rademacher", 17, 200, dim=520, gap=5, dtype=torch.bfloat16),
    "rows beyond 32": make("rademacher", 33, 140, offset=2**40 + 77, dim=600),
    "most outputs": make("rademacher", 2, 60, dim=4097, variant="adamw"),
    "rademacher saturated": make("rademacher", 3, 200, dim=64, finer=2),
    "rademacher not finite": broken(make("rademacher", 3, 200, dim=64, variant="less")),
    "normal, one row": make("gaussian", 1, 130, offset=3, dim=1000),
    "normal, rows beyond 32": make("gaussian", 33, 70, offset=2**40 + 1, dim=100, variant="adamw"),
    "normal, long runs": make("gaussian", 2, 3 * 4096 + 5, dim=64, dtype=torch.bfloat16),
    "normal, most outputs": make("gaussian", 3, 40, dim=4097, gap=1, dtype=torch.float16),
    "normal, not finite": broken(make("gaussian", 3, 100, dim=70, variant="adamw")),
    "squares alone, smallest": make("dots", 1, 1, dim=1),
    "one direction, last piece cut": make("dots", 3, 2 * 4096 + 77, offset=5, dim=2, variant="adamw"),
    "two directions, gaps": make("dots", 5, 4096 + 33, dim=3, variant="less", gap=3),
    "a tile of directions": make("dots", 2, 4096, dim=9, variant="second_moment", dtype=torch.bfloat16),
    "more tiles of directions": make("dots", 2, 4097, offset=2**40, dim=18, dtype=torch.float16, gap=1),
    "many rows": make("dots", 33, 4096 + 1, dim=3, variant="adamw"),
    "rows of one tile each, cut": make("dots", 9, 8 * 4096, dim=2, dtype=torch.bfloat16),
    "products, not finite": broken(make("dots", 6, 4096 + 100, dim=4, variant="adamw")),
}


@pytest.mark.parametrize("name", CASES)
def test_emulated_kernels_give_the_bits_of_the_reference(emulator: Emulator, name: str) -> None:
    job = CASES[name]
    assert differs(job, emulator.run(job), job.reference()) is None


@pytest.mark.parametrize("order", ["reverse", "1", "2"])
@pytest.mark.parametrize(
    "name", ["rows of one tile, first group cut", "tile of 8, span cut at both ends", "normal, one row", "many rows"]
)
def test_the_order_of_threads_does_not_matter(emulator: Emulator, name: str, order: str) -> None:
    job = CASES[name]
    assert differs(job, emulator.run(job, order=order), job.reference()) is None


@pytest.mark.parametrize("multiprocessors", [1, 3, 132])
@pytest.mark.parametrize(
    "name", ["several splits", "two tiles of 8", "many rows", "more tiles of directions", "products, not finite"]
)
def test_the_size_of_the_device_does_not_matter(emulator: Emulator, name: str, multiprocessors: int) -> None:
    job = CASES[name]
    assert differs(job, emulator.run(job, multiprocessors=multiprocessors), job.reference()) is None


@pytest.mark.parametrize(("rows", "offset"), [(2, 100), (9, 0)])
def test_a_small_workspace_takes_the_parameters_chunk_by_chunk(emulator: Emulator, rows: int, offset: int) -> None:
    job = make("rademacher", rows, 700, offset=offset, dim=40, variant="adamw")
    tiles = 1 if rows <= 8 else 2
    assert differs(job, emulator.run(job, workspace_bytes=2 * tiles * 2048), job.reference()) is None


@pytest.mark.parametrize("pieces", [1, 2])
def test_a_small_workspace_takes_piece_by_piece(emulator: Emulator, pieces: int) -> None:
    job = make("dots", 3, 4 * 4096 + 5, dim=3, variant="adamw", gap=2)
    assert differs(job, emulator.run(job, workspace_bytes=pieces * 3 * 3 * 8), job.reference()) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_beyond_32_bits_are_exact(emulator: Emulator, sign: int) -> None:
    job = towards_one_side(sign)
    expected = job.reference()
    assert abs(int((expected.sums - job.totals().sums)[0, 0])) > 2**32
    assert differs(job, emulator.run(job), expected) is None


@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian", "dots"])
@pytest.mark.parametrize(("rows", "count"), [(0, 5), (2, 0)])
def test_nothing_to_add(emulator: Emulator, kind: str, rows: int, count: int) -> None:
    job = Job(kind, torch.zeros(rows, count), 0, 128)
    assert differs(job, emulator.run(job), job.totals()) is None
