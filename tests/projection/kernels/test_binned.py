"""Sums on different grids against arithmetic with Python's integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.projection.kernels.binned import BINS, BinnedSums
from dataflex.projection.kernels.fixed_point import MAX_EXPONENT, MIN_EXPONENT

CPU = torch.device("cpu")
TERMS = st.lists(st.tuples(st.integers(-(2**45), 2**45), st.integers(MIN_EXPONENT, MAX_EXPONENT)), max_size=12)


def added(terms: list[tuple[int, int]]) -> float:
    sums = BinnedSums(1, 1, CPU)
    for value, exponent in terms:
        sums.add(torch.tensor([[value]]), torch.tensor([exponent], dtype=torch.int32))
    return sums.total().item()


@given(terms=TERMS, order=st.randoms(use_true_random=False))
def test_sums_are_those_of_fractions_in_any_order(terms: list[tuple[int, int]], order) -> None:
    expected = sum((Fraction(value) / Fraction(2) ** exponent for value, exponent in terms), Fraction(0))
    size = sum((abs(Fraction(value)) / Fraction(2) ** exponent for value, exponent in terms), Fraction(0))
    found = added(terms)
    assert abs(Fraction(found) - expected) <= size * Fraction(BINS, 2**52)
    order.shuffle(terms)
    assert added(terms) == found


def test_rows_have_grids_of_their_own_and_the_block_is_emptied() -> None:
    sums, block = BinnedSums(3, 2, CPU), torch.tensor([[1, -2], [3, 4], [5, 6]])
    sums.add(block, torch.tensor([MIN_EXPONENT, 0, MAX_EXPONENT], dtype=torch.int32))
    assert not block.any()
    scales = torch.tensor([2.0**126, 1.0, 2.0**-127], dtype=torch.float64)[:, None]
    assert torch.equal(sums.total(), torch.tensor([[1, -2], [3, 4], [5, 6]]) * scales)


def test_opposites_cancel_across_grids() -> None:
    assert added([(2**40, 30), (-1, -10)]) == 0.0
    assert added([(2**45, -100), (1, 127), (-(2**45), -100)]) == 2.0**-127


@pytest.mark.parametrize("exponent", [MIN_EXPONENT, -1, 0, 7, MAX_EXPONENT])
def test_a_bin_holds_the_largest_sums(exponent: int) -> None:
    terms = [(2**50, exponent)] * 60
    assert added(terms) == 60 * 2.0**50 * 2.0**-exponent
