from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.projection.adam import AdamMoments, adam_normalize
from dataflex.projection.kernels import fixed_point, rademacher, sjlt


@pytest.mark.parametrize("limit", [sjlt.LIMIT, rademacher.LIMIT])
@given(largest=st.floats(width=32, allow_nan=False, allow_infinity=False), share=st.floats(0, 1))
def test_raw_exponents_use_the_grid_to_its_limit(largest: float, share: float, limit: int) -> None:
    row = torch.tensor([[share * largest, -largest, 0.0]])
    (exponent,) = fixed_point.raw_exponents(row, limit).tolist()
    assert abs(largest) * 2.0**exponent <= limit
    if largest != 0 and exponent < fixed_point.MAX_EXPONENT:
        assert abs(largest) * 2.0**exponent >= limit / 2


def test_raw_exponents_of_special_rows() -> None:
    rows = torch.tensor([[0.0, 0.0], [math.nan, 1.0], [1.0, -math.inf], [1e-45, 0.0], [1.0, 0.5], [2.0, -4.0]])
    assert fixed_point.raw_exponents(rows, sjlt.LIMIT).tolist() == [127, -126, -126, 127, 23, 21]
    assert fixed_point.raw_exponents(torch.zeros(2, 0), sjlt.LIMIT).tolist() == [127, 127]
    assert fixed_point.raw_exponents(rows.bfloat16(), sjlt.LIMIT).dtype == torch.int32


@pytest.mark.parametrize("limit", [sjlt.LIMIT, rademacher.LIMIT])
@given(
    gradient=st.floats(2.0**-60, 2.0**40),
    before=st.floats(0, 2.0**80),
    eps=st.sampled_from([0.0, 1e-8, 1.0]),
    b2=st.floats(0, 0.999999),
    steps=st.integers(1, 10**6),
)
def test_second_moment_exponents_waste_at_most_a_bit(
    limit: int, gradient: float, before: float, eps: float, b2: float, steps: int
) -> None:
    adam = AdamMoments(torch.zeros(1), torch.tensor([before]), steps, (0.9, b2), eps, "second_moment")
    row = torch.tensor([[-gradient]])
    (largest,) = adam_normalize(row, adam).abs().amax(dim=1).double().tolist()
    (exponent,) = fixed_point.second_moment_exponents(row, adam, limit).tolist()
    assert largest * 2.0**exponent <= limit
    if exponent < fixed_point.MAX_EXPONENT:
        assert largest * 2.0**exponent >= limit / 4 * (1 - 2**-9)


def test_second_moment_exponents_of_special_rows() -> None:
    count = fixed_point.BOUND_COLUMNS  # in two parts
    values = torch.zeros(2, 3)
    values[0] = torch.tensor([math.nan, 0.0, 1.0])
    adam = AdamMoments(torch.zeros(3), torch.zeros(3), 1, (0.9, 0.999), 0.0, "second_moment")
    assert fixed_point.second_moment_exponents(values, adam, sjlt.LIMIT).tolist() == [-126, 127]
    assert fixed_point.second_moment_exponents(values[:, :0], adam.slice(0, 0), sjlt.LIMIT).tolist() == [127, 127]
    assert fixed_point.second_moment_exponents(values[:0], adam, sjlt.LIMIT).tolist() == []
    wide = AdamMoments(torch.zeros(count + 5), torch.ones(count + 5), 1, (0.9, 0.5), 0.0, "second_moment")
    row = torch.zeros(1, count + 5)
    row[0, -1] = 2.0**-20
    (exponent,) = fixed_point.second_moment_exponents(row, wide, sjlt.LIMIT).tolist()
    assert 40 <= exponent <= 43


def test_adam_exponent_covers_the_bound() -> None:
    assert fixed_point.adam_exponent((0.9, 0.999), sjlt.LIMIT) == 20  # |u| <= 7.27 < 2^3
    assert fixed_point.adam_exponent((0.9, 0.9), sjlt.LIMIT) == 22  # |u| <= 1, and rounding may pass it
    assert fixed_point.adam_exponent((0.9, 0.999), rademacher.LIMIT) == 12
    for steps in (1, 2, 100, 10**6):  # the step does not matter where the limit is small
        assert fixed_point.adam_exponent((0.9, 0.999), sjlt.LIMIT, gradients=steps) == 20
    close = (0.9, 1 - 1e-8)
    exponents = [fixed_point.adam_exponent(close, sjlt.LIMIT, gradients=steps) for steps in (10, 1000, 10**6, None)]
    assert exponents == [20, 20, 15, 11]
    assert fixed_point.adam_exponent((0.9, 0.999), sjlt.LIMIT, 1.9) == 19
