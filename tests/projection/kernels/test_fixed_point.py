from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.projection.kernels import fixed_point, rademacher, sjlt


@pytest.mark.parametrize("limit", [sjlt.LIMIT, rademacher.LIMIT])
@given(largest=st.floats(width=32, allow_nan=False, allow_infinity=False), share=st.floats(0, 1))
def test_row_exponents_use_the_grid_to_its_limit(largest: float, share: float, limit: int) -> None:
    row = torch.tensor([[share * largest, -largest, 0.0]])
    (exponent,) = fixed_point.row_exponents(row, limit).tolist()
    assert abs(largest) * 2.0**exponent <= limit
    if largest != 0 and exponent < fixed_point.MAX_EXPONENT:
        assert abs(largest) * 2.0**exponent >= limit / 2


def test_row_exponents_of_special_rows() -> None:
    rows = torch.tensor([[0.0, 0.0], [math.nan, 1.0], [1.0, -math.inf], [1e-45, 0.0], [1.0, 0.5], [2.0, -4.0]])
    assert fixed_point.row_exponents(rows, sjlt.LIMIT).tolist() == [127, -126, -126, 127, 23, 21]
    assert fixed_point.row_exponents(torch.zeros(2, 0), sjlt.LIMIT).tolist() == [127, 127]
    assert fixed_point.row_exponents(rows.bfloat16(), sjlt.LIMIT).dtype == torch.int32


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
