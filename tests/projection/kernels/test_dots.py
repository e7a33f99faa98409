"""The operator of exact inner products: its order of additions, and what torch wants of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dataflex.projection.adam import AdamMoments, AdamVariant
from dataflex.projection.kernels import native
from dataflex.projection.kernels.block import normalisation
from dataflex.projection.kernels.dots import LANES, PIECE, dots_accumulate
from helpers.projections import gradients, moments, torch_only

kernels = native.native_status().module
needs_native = pytest.mark.skipif(kernels is None, reason=f"no native kernels: {native.native_status().reason}")


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
    sums = torch.zeros(5, 2, 4, dtype=torch.float64)
    blocks = list(gradients(2, count).split([count - 10, 10], dim=1))
    return (
        blocks,
        [0, count - 10],
        [3, 0],
        *normalisation(moments(count)),
        wanted,
        sums,
        torch.zeros(2, dtype=torch.uint8),
    )


def test_additions_come_in_the_stated_order() -> None:
    count = 2 * PIECE + 77
    grads = gradients(2, count, seed=torch.seed() % 2**31)
    wanted = torch.randn(3, count)
    sums, flags = torch.zeros(1, 2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.uint8)
    dots_accumulate([grads], [0], [0], *normalisation(None), wanted, sums, flags)
    for row in range(2):
        factors = [grads[row], *wanted]
        assert sums[0, row].tolist() == [summed_in_order(grads[row].double() * other.double()) for other in factors]


def test_sums_are_added_to() -> None:
    *before, sums, flags = operator_call()
    dots_accumulate(*before, sums, flags)
    once = sums.clone()
    dots_accumulate(*before, sums, flags)
    assert torch.equal(sums, 2 * once)
    assert [number for number in range(5) if sums[number].all()] == [0, 3]
    assert not sums[[1, 2, 4]].any()
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


def results(grads: Tensor, adam: AdamMoments | None, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Sums, which start at 0.5, and flags of one call."""
    rows = len(grads)
    sums, flags = torch.full((1, rows, 1 + len(wanted)), 0.5).double(), torch.zeros(rows, dtype=torch.uint8)
    dots_accumulate([grads], [0], [0], *normalisation(adam), wanted, sums, flags)
    return sums[0], flags


@needs_native
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("variant", [None, "adamw", "less", "second_moment"])
@pytest.mark.parametrize(
    ("rows", "count", "number", "dtype"),
    [
        (1, 1, 1, torch.float32),
        (4, PIECE, 0, torch.float32),
        (7, PIECE + 1, 4, torch.bfloat16),
        (5, 31, 5, torch.float16),
        (2, 3 * PIECE - 33, 9, torch.float16),
        (33, 777, 1, torch.float32),
    ],
)
def test_every_instruction_set_gives_the_bits_of_the_reference(
    rows: int, count: int, number: int, dtype: torch.dtype, variant: AdamVariant | None
) -> None:
    seed = int(torch.seed() % 2**31)
    grads = gradients(rows, count + 3, seed).to(dtype)[:, 1 : count + 1]
    if rows > 2:
        grads[1, -1], grads[2, 0] = torch.nan, -torch.inf
    wanted = torch.randn(2 * number, count + 5)[::2, 3 : count + 3]
    adam = None if variant is None else moments(count, variant, seed=seed)
    found = results(grads, adam, wanted)
    with torch_only():
        expected = results(grads, adam, wanted)
    assert torch.equal(found[0], expected[0]), seed
    assert found[1].tolist() == expected[1].tolist() == [row in (1, 2) and rows > 2 for row in range(rows)]


@needs_native
@pytest.mark.usefixtures("isa")
def test_more_partial_sums_than_are_held_at_once() -> None:
    """40 rows x 3 pieces x 9,001 sums are more than 2^20: the pieces go through in turn."""
    grads, wanted = gradients(40, 2 * PIECE + 5), torch.randn(2, 2 * PIECE + 5).repeat(4500, 1)
    few, many = results(grads, None, wanted[:2])[0], results(grads, None, wanted)[0]
    assert torch.equal(many, torch.cat([few[:, :1], few[:, 1:].repeat(1, 4500)], dim=1))


def native_arguments(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "grads": np.ones((2, 5), np.float32),
        "type": "float32",
        "offset": 0,
        "variant": "none",
        "constants": (0.0,) * 7,
        "exp_avg": None,
        "exp_avg_sq": None,
        "directions": np.ones((3, 5), np.float32),
        "sums": np.zeros((2, 4), np.float64),
        "not_finite": np.zeros(2, np.uint8),
        "threads": 1,
    }
    return values | changes


@needs_native
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": np.ones((3, 4), np.float32)}, "directions and grads differ in columns"),
        ({"directions": np.ones(5, np.float32)}, "directions and grads differ in columns"),
        ({"directions": np.ones((5, 3), np.float32).T}, "a direction must be contiguous"),
        ({"sums": np.zeros((2, 3))}, "sums must have a column a direction and one more"),
        ({"sums": np.zeros((3, 4))}, "totals and grads differ in rows"),
        ({"not_finite": np.zeros(3, np.uint8)}, "per-row arrays and grads differ in rows"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    assert kernels is not None
    with pytest.raises(ValueError, match=message):
        kernels.dots_accumulate(**native_arguments(**changes))


@needs_native
def test_plain_torch_in_place_of_the_kernel_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLEX_NATIVE", "0")
    native.native_status.cache_clear()
    native.announce.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="exact inner products run in plain torch, about .* times slower"):
            results(torch.ones(1, 3), None, torch.ones(1, 3))
    finally:
        native.native_status.cache_clear()
