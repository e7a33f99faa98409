from __future__ import annotations

import math

import pytest
import torch

from dataflex.projection.kernels import gaussian
from dataflex.projection.kernels.native import native_status
from dataflex.projection.kernels.philox import philox4x32
from dataflex.projection.projector import Projector

needs_native = pytest.mark.skipif(native_status().module is None, reason=f"no native kernels: {native_status().reason}")


def entry(output: int, parameter: int, seed: int) -> float:
    """One entry of sqrt(k) P as ``csrc/gaussian.h`` states it."""
    block = parameter // 4
    counter = (block % 2**32, block >> 32, output, 0x67617573)
    words = [int(word) for word in philox4x32(tuple(torch.tensor([word]) for word in counter), seed)]
    x, y = words[parameter % 4 // 2 * 2 :][:2]
    radius, angle = math.sqrt(-2 * math.log((x + 0.5) / 2**32)), 2 * math.pi * (y + 0.5) / 2**32
    return radius * (math.sin(angle) if parameter % 2 else math.cos(angle))


@pytest.mark.parametrize("start", [0, 1001, 2**40 + 77])
def test_entries_are_those_of_the_header(start: int) -> None:
    entries = gaussian.normal_entries(start, start + 9, dim=40, seed=2**64 - 3)
    for output in (0, 1, 39):
        for column in range(9):
            expected = entry(output, start + column, 2**64 - 3)
            assert entries[output, column].item() == pytest.approx(expected, abs=1e-12)


@needs_native
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_native_entries_are_within_a_millionth(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = native_status().module
    assert module is not None
    monkeypatch.setenv("DATAFLEX_ISA", isa)
    try:
        module.isa()
    except ValueError:
        pytest.skip(f"this processor has no {isa}")
    count, dim = 32, 20000
    features = Projector(dim, kind="gaussian").project(torch.eye(count)) * math.sqrt(dim)  # row d is column d of P
    expected = gaussian.normal_entries(0, count, dim=dim, seed=0).T
    assert (features.double() - expected).abs().max() < 2e-6  # 1e-6, and the division by sqrt(k) and back


def test_entries_are_normal_and_independent() -> None:
    count, dim = 2048, 256
    entries = gaussian.normal_entries(0, count, dim=dim, seed=1)
    total = count * dim
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((entries**power).mean().item() - moment) < 5 * math.sqrt(variance / total)
    rows = entries @ entries.T / count
    assert (rows - torch.eye(dim, dtype=torch.float64)).abs().max() < 7 / math.sqrt(count)
    columns = entries.T @ entries / dim
    assert (columns - torch.eye(count, dtype=torch.float64)).abs().max() < 9 / math.sqrt(dim)
