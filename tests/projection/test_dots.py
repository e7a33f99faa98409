"""Exact inner products: against float64, and the same bits however the gradients arrive."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.projection.adam import AdamMoments, AdamVariant, adam_normalize
from dataflex.projection.dots import PIECE, DotAccumulator, Dots, whole_pieces
from helpers.projections import gradients, moments

VARIANTS: list[AdamVariant | None] = [None, "adamw", "less", "second_moment"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [3, PIECE, 2 * PIECE + 17, 1, 3 * PIECE, 5000]
"""Of the parameters."""
TOTAL = sum(SIZES)


def fresh() -> int:
    """A seed that no run had before."""
    seed = int(torch.seed() % 2**31)
    print(f"seed {seed}")  # shown with a failure
    return seed


def extents(sizes: Sequence[int] = SIZES) -> list[tuple[int, int]]:
    return list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))


def directions(number: int, count: int = TOTAL, seed: int = 0) -> Tensor:
    return torch.randn(number, count, generator=torch.Generator().manual_seed(seed))


def blocks_of(sizes: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Every parameter in blocks of some width, one parameter after the other."""
    return [(begin, min(begin + width, stop)) for start, stop in extents(sizes) for begin in range(start, stop, width)]


def dots(
    grads: Tensor,
    adam: AdamMoments | None,
    wanted: Tensor,
    *,
    sizes: Sequence[int] = SIZES,
    blocks: Sequence[tuple[int, int]] | None = None,
) -> Dots:
    accumulator = DotAccumulator(wanted, len(grads), extents(sizes))
    for start, stop in extents(sizes) if blocks is None else blocks:
        accumulator.add(grads[:, start:stop], start, adam.slice(start, stop) if adam else None)
    return accumulator.result()


def same_bits(found: Dots, expected: Dots) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.equal(a.nan_to_num(1e300), b.nan_to_num(1e300)) for a, b in pairs)


def check_against_float64(grads: Tensor, adam: AdamMoments | None, wanted: Tensor) -> None:
    u = (grads.float() if adam is None else adam_normalize(grads, adam)).double()
    found = dots(grads, adam, wanted)
    assert found.products.shape == (len(grads), len(wanted))
    assert found.finite.all()
    scale = u.abs() @ wanted.double().abs().T  # of the sum's terms: products may cancel
    assert ((found.products - u @ wanted.double().T).abs() <= 1e-14 * scale).all()
    torch.testing.assert_close(found.squares, u.square().sum(dim=1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "number"), [(1, 0), (3, 1), (9, 2), (5, 8), (2, 300)])
def test_products_are_those_of_float64(rows: int, number: int, dtype: torch.dtype, variant: AdamVariant | None) -> None:
    seed = fresh()
    grads = gradients(rows, TOTAL, seed).to(dtype)
    adam = None if variant is None else moments(TOTAL, variant, seed=seed)
    check_against_float64(grads, adam, directions(number, seed=seed))


def with_rates(adam: AdamMoments, rates: Sequence[float], sizes: Sequence[int] = SIZES) -> AdamMoments:
    """The moments with a learning rate a parameter."""
    ends = [stop for _, stop in extents(sizes)]
    return replace(adam, rates=tuple(zip(ends, rates, strict=True)), largest_rate=max(rates))


def test_parameters_with_learning_rates_of_their_own_may_share_a_block() -> None:
    rates = [0.5, 4.0, 1.0, 0.0, 2.0, 1.5]
    grads, adam, wanted = gradients(3, TOTAL, fresh()), with_rates(moments(TOTAL), rates), directions(2)
    check_against_float64(grads, adam, wanted)
    expected = dots(grads, adam, wanted)
    for width in (TOTAL, 1000):
        blocks = [(start, min(start + width, TOTAL)) for start in range(0, TOTAL, width)]
        assert same_bits(dots(grads, adam, wanted, blocks=blocks), expected)


def test_a_learning_rate_that_changes_inside_a_piece_is_refused() -> None:
    adam = with_rates(moments(20), [1.0, 2.0], [10, 10])
    accumulator = DotAccumulator(directions(1, 20), 2, [(0, 20)])
    with pytest.raises(ProjectionError, match="learning rate changes inside parameter number 0, at 10"):
        accumulator.add(torch.ones(2, 20), 0, adam)
    parted = DotAccumulator(directions(1, 20), 2, [(0, 20)])
    parted.add(torch.ones(2, 10), 0, adam.slice(0, 10))
    with pytest.raises(ProjectionError, match="learning rate changes inside parameter number 0, at 10"):
        parted.add(torch.ones(2, 10), 10, adam.slice(10, 20))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("number", [0, 1, 9])
def test_bits_do_not_depend_on_batch_split_order_or_threads(number: int, variant: AdamVariant | None) -> None:
    seed = fresh()
    grads, wanted = gradients(9, TOTAL, seed), directions(number, seed=seed)
    adam = None if variant is None else moments(TOTAL, variant, seed=seed)
    torch.set_num_threads(1)
    expected = dots(grads, adam, wanted)
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert same_bits(dots(grads, adam, wanted), expected)
        for rows in (1, 2, 7):
            assert same_bits(dots(grads[:rows], adam, wanted), Dots(*(part[:rows] for part in expected)))
    assert same_bits(dots(grads, adam, wanted, blocks=extents()[::-1]), expected)
    assert same_bits(dots(grads, adam, wanted, blocks=[(0, TOTAL)]), expected)
    for width in (PIECE, 2 * PIECE, 1000, 4097):
        assert same_bits(dots(grads, adam, wanted, blocks=blocks_of(SIZES, width)), expected)
    wide = torch.zeros(18, TOTAL + 60)
    wide[::2, 50 : 50 + TOTAL] = grads
    far = torch.zeros(2 * number, TOTAL + 7)
    far[::2, 5 : 5 + TOTAL] = wanted
    assert same_bits(dots(wide[::2, 50 : 50 + TOTAL], adam, far[::2, 5 : 5 + TOTAL]), expected)


def test_a_direction_has_the_same_product_among_others() -> None:
    seed = fresh()
    grads, adam, wanted = gradients(4, TOTAL, seed), moments(TOTAL), directions(11, seed=seed)
    together = dots(grads, adam, wanted)
    for j in (0, 5, 10):
        assert torch.equal(dots(grads, adam, wanted[j : j + 1]).products[:, 0], together.products[:, j])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", [0, 3 + PIECE - 1, TOTAL - 1])
def test_rows_that_are_not_finite_are_nan_and_alone(column: int, broken: float, variant: AdamVariant | None) -> None:
    grads, wanted = gradients(4, TOTAL), directions(3)
    adam = None if variant is None else moments(TOTAL, variant)
    expected = dots(grads, adam, wanted)
    grads[1, column] = broken
    found = dots(grads, adam, wanted)
    assert found.finite.tolist() == [True, False, True, True]
    assert found.products[1].isnan().all()
    assert found.squares[1].isnan()
    assert torch.equal(found.products[[0, 2, 3]], expected.products[[0, 2, 3]])
    assert torch.equal(found.squares[[0, 2, 3]], expected.squares[[0, 2, 3]])


def test_a_denominator_that_overflows_is_not_finite() -> None:
    grads = torch.full((2, 5), 1e-3)
    grads[1, 4] = 1e25  # its square is infinite: u would be 0
    found = dots(grads, moments(5), directions(1, 5), sizes=[5])
    assert found.finite.tolist() == [True, False]


def test_zero_rows_and_no_parameters_are_zero() -> None:
    found = dots(torch.zeros(2, TOTAL), None, directions(2))
    assert found.squares.tolist() == [0, 0]
    assert not found.products.any()
    empty = DotAccumulator(torch.zeros(2, 0), 3, []).result()
    assert empty.products.tolist() == [[0, 0]] * 3
    assert empty.finite.all()


@pytest.mark.parametrize(
    ("parameters", "wanted", "message"),
    [
        ([(0, 5), (6, 10)], torch.zeros(1, 10), "parameter number 1 must start at 5, got 6 to 10"),
        ([(0, 5)], torch.zeros(1, 10), "the parameters end at 5, the directions at 10"),
        ([(0, 5)], torch.zeros(1, 5).double(), r"directions: must be float32 of shape \(d, p\), got torch.float64"),
        ([(0, 5)], torch.zeros(5), r"directions: must be float32 of shape \(d, p\)"),
        ([(0, 5)], torch.zeros(5, 2).T, "directions: values of a row must be contiguous"),
        ([(0, 5)], torch.zeros(1, 5, device="meta"), "directions: must be on cpu, got meta"),
    ],
)
def test_directions_and_extents_that_do_not_fit_are_refused(
    parameters: list[tuple[int, int]], wanted: Tensor, message: str
) -> None:
    with pytest.raises(ProjectionError, match=message):
        DotAccumulator(wanted, 1, parameters)


@pytest.mark.parametrize(
    ("block", "offset", "adam", "message"),
    [
        (torch.zeros(3, 5), 0, None, r"gradients must have shape \(2, n\)"),
        (torch.zeros(2, 5).double(), 0, None, "gradients must be float32, bfloat16 or float16"),
        (torch.zeros(2, 5), 8, None, "parameters 8 to 13 do not fit directions of 10 parameters"),
        (torch.zeros(2, 3), 4, None, "parameter number 0 must come in order: expected its column 0, got 4"),
        (torch.zeros(2, 5), 0, moments(4), "moments of 4 parameters do not fit gradients of 5"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(block: Tensor, offset: int, adam: AdamMoments | None, message: str) -> None:
    accumulator = DotAccumulator(torch.zeros(1, 10), 2, [(0, 7), (7, 10)])
    with pytest.raises(ProjectionError, match=message):
        accumulator.add(block, offset, adam)


def test_what_is_missing_comes_twice_or_has_other_moments_is_refused() -> None:
    accumulator = DotAccumulator(torch.zeros(1, 10), 2, [(0, 7), (7, 10)])
    accumulator.add(torch.zeros(2, 3), 7)
    with pytest.raises(ProjectionError, match="expected its column 3, got 0"):
        accumulator.add(torch.zeros(2, 3), 7)
    with pytest.raises(ProjectionError, match="must share step, betas"):
        accumulator.add(torch.zeros(2, 7), 0, moments(7))
    accumulator.add(torch.zeros(2, 4), 0)
    with pytest.raises(ProjectionError, match="1 of 2 are not complete; the first, number 0, has 4 of 7 values"):
        accumulator.result()


@pytest.mark.parametrize("width", [1, 2, 3, 64, 768, 4096, 5000, 12288, 4097])
@pytest.mark.parametrize("rows", [1, 31, 4096, 100_000])
def test_whole_pieces_end_at_borders_where_they_fit(rows: int, width: int) -> None:
    found = whole_pieces(rows, width)
    assert 1 <= found <= rows
    unit = math.lcm(PIECE, width) // width
    if rows >= unit:
        assert found * width % PIECE == 0
        assert found > rows - unit
    else:
        assert found == rows
