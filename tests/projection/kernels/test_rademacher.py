from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dataflex.projection.kernels import rademacher
from dataflex.projection.kernels.philox import philox4x32


def is_negative(output: int, parameter: int, seed: int) -> bool:
    """The sign of one entry, word by word as ``csrc/rademacher.h`` states it."""
    lane = 4 * (output % 8) + parameter // 4 % 4
    block = parameter // 128
    counter = (block % 2**32, block >> 32, output // 32 * 32 + lane, 0x72616465)
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), seed)
    bit = 8 * (parameter % 4) + parameter // 16 % 8
    return bool(int(words[output // 8 % 4]) >> bit & 1)


@pytest.mark.parametrize("seed", [0, 2**64 - 3])
@pytest.mark.parametrize("start", [0, 1000, 2**40 + 77])
def test_signs_are_those_of_the_header(start: int, seed: int) -> None:
    signs = rademacher.negative_signs(start, start + 300, dim=100, seed=seed)
    for output in (0, 7, 8, 31, 32, 99):
        for column in (0, 3, 4, 15, 16, 127, 128, 299):
            assert bool(signs[output, column]) == is_negative(output, start + column, seed)


def signs(count: int, dim: int, seed: int = 0) -> Tensor:
    """(k, n) float64 +-1."""
    return 1 - 2 * rademacher.negative_signs(0, count, dim=dim, seed=seed).double()


def test_signs_are_balanced_and_independent() -> None:
    count, dim = 4096, 512
    entries = signs(count, dim)
    assert abs(entries.mean().item()) < 5 / math.sqrt(count * dim)
    assert entries.mean(dim=0).abs().max() < 5.5 / math.sqrt(dim)
    assert entries.mean(dim=1).abs().max() < 5.5 / math.sqrt(count)
    rows = entries @ entries.T / count  # products of every two outputs
    assert (rows - torch.eye(dim, dtype=torch.float64)).abs().max() < 6 / math.sqrt(count)


def test_expected_product_of_columns_is_the_identity() -> None:
    seeds, count, dim = 150, 40, 64
    mean = torch.zeros(count, count, dtype=torch.float64)
    for seed in range(seeds):
        entries = signs(count, dim, seed) / math.sqrt(dim)
        mean += entries.T @ entries / seeds
    assert (mean - torch.eye(count, dtype=torch.float64)).abs().max() < 5 / math.sqrt(dim * seeds)
