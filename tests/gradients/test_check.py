from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from dataflex.gradients.check import disagreement


class Two(torch.nn.Module):
    """Parameters 0 to 4 and 4 to 10."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first = torch.nn.Parameter(torch.ones(2, 2, dtype=dtype))
        self.second = torch.nn.Parameter(torch.ones(6, dtype=dtype))


def check(found, expected, model=None, autocast=nullcontext):
    """Streams ``found`` in three blocks, the second parameter in two ranges."""

    def run(sink):
        for start, stop in ((7, 10), (0, 4), (4, 7)):
            sink(found[:, start:stop], start)

    return disagreement(model or Two(), autocast, expected, run)


@pytest.fixture
def expected():
    return torch.randn(3, 10, generator=torch.Generator().manual_seed(0))


def test_rounding_is_no_disagreement(expected):
    assert check(expected, expected) is None
    assert check(expected * (1 + 1e-5), expected) is None


@pytest.mark.parametrize(("column", "name"), [(0, "first"), (8, "second")])
def test_the_parameter_that_is_off_is_named(expected, column, name):
    found = expected.clone()
    found[:, column] *= 1.1
    assert check(found, expected).startswith(f"{name} is off by 0.0")


def test_a_small_parameter_counts_as_much_as_a_large_one(expected):
    expected[:, :4] *= 1e-3
    found = expected.clone()
    found[:, :4] *= 1.2
    assert check(found, expected).startswith("first is off by")


def test_noise_where_the_gradient_is_zero_does_not_count(expected):
    expected[:, :4] = 0
    found = expected.clone()
    found[:, :4] = 1e-6
    assert check(found, expected) is None
    assert check(torch.zeros(3, 10), torch.zeros(3, 10)) is None
    assert check(torch.ones(3, 10), torch.zeros(3, 10)) is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(("column", "name"), [(0, "first"), (8, "second")])
def test_a_rule_that_is_not_finite_is_never_trusted(expected, column, name, value):
    found = expected.clone()
    found[1, column] = value
    assert check(found, expected).startswith(f"{name} is off by inf")


def test_large_gradients_are_compared_too(expected):
    found = expected.clone()
    found[:, 8] *= 1.5
    assert check(expected * 1e25, expected * 1e25) is None
    assert check(found * 1e25, expected * 1e25).startswith("second is off by 0.")


def test_the_limit_follows_the_precision(expected):
    found = expected * 1.05
    assert check(found, expected) is not None
    assert check(found, expected, Two(torch.bfloat16)) is None
    assert check(found, expected, autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16)) is None
    assert check(expected * (1 + 1e-4), expected) is None
    assert check(expected * (1 + 1e-4), expected, Two(torch.float64)) is not None
