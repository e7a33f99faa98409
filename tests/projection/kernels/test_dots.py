"""The operator of exact inner products: its order of additions, and what torch wants of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dataflex.projection.kernels.block import arguments
from dataflex.projection.kernels.dots import LANES, PIECE, dots_accumulate
from helpers.projections import gradients, moments


def summed_in_order(products: Tensor) -> float:
    """The sum of one row's products, one addition of Python floats after the other."""
    total = 0.0
    for piece in products.split(PIECE):
        lanes = [0.0] * LANES
        for column, product in enumerate(piece.tolist()):
            lanes[column % LANES] += product
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [lanes[i] + lanes[half + i] for i in range(half)]
        total += lanes[0]
    return total


def operator_call(count: int = 40) -> tuple[Any, ...]:
    """Arguments: two rows, three directions."""
    wanted = torch.randn(3, count, generator=torch.Generator().manual_seed(2))
    sums = torch.zeros(2, 4, dtype=torch.float64)
    return *arguments(gradients(2, count), 3, moments(count)), wanted, sums, torch.zeros(2, dtype=torch.uint8)


def test_additions_come_in_the_stated_order() -> None:
    count = 2 * PIECE + 77
    grads = gradients(2, count, seed=torch.seed() % 2**31)
    wanted = torch.randn(3, count)
    sums, flags = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.uint8)
    dots_accumulate(*arguments(grads, 0, None), wanted, sums, flags)
    for row in range(2):
        factors = [grads[row], *wanted]
        assert sums[row].tolist() == [summed_in_order(grads[row].double() * other.double()) for other in factors]


def test_sums_are_added_to() -> None:
    *before, sums, flags = operator_call()
    dots_accumulate(*before, sums, flags)
    once = sums.clone()
    dots_accumulate(*before, sums, flags)
    assert torch.equal(sums, 2 * once)
    assert not flags.any()


def test_the_operator_is_registered_as_torch_wants_it() -> None:
    torch.library.opcheck(dots_accumulate, operator_call())


def test_the_operator_compiles_and_runs_in_inference_mode() -> None:
    *before, sums, flags = operator_call()
    expected = sums.clone()
    dots_accumulate(*before, expected, flags)

    def call(zeros: Tensor) -> Tensor:
        total = zeros + 0
        dots_accumulate(*before, total, flags)
        return total

    assert torch.equal(torch.compile(call, fullgraph=True, backend="eager")(sums), expected)
    with torch.inference_mode():
        assert torch.equal(call(sums), expected)
