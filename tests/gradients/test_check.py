from __future__ import annotations

import pytest
import torch

from dataflex.gradients.check import compared, without_zeros


class Two(torch.nn.Module):
    """Parameters 0 to 4 and 4 to 10."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.first = torch.nn.Parameter(torch.ones(2, 2, dtype=dtype))
        self.second = torch.nn.Parameter(torch.ones(6, dtype=dtype))


def verdict(found, expected, model=None, unused=frozenset()):
    """Streams ``found`` in three blocks, the second parameter in two ranges."""

    def run(sink):
        for start, stop in ((7, 10), (0, 4), (4, 7)):
            sink(found[:, start:stop], start)
        return unused

    return compared(model or Two(), expected, run)


def check(found, expected, model=None):
    return verdict(found, expected, model).reason


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
    assert check(expected * (1 + 1e-4), expected) is None
    assert check(expected * (1 + 1e-4), expected, Two(torch.bfloat16)) is None
    assert check(expected * 1.01, expected, Two(torch.bfloat16)) is not None
    assert check(expected * (1 + 1e-4), expected, Two(torch.float64)) is not None


@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_a_missing_gradient_is_noticed_however_small(expected, size):
    """A share of the whole of 1e-2 was below the threshold for forward passes in bfloat16."""
    expected[:, :4] *= size
    found = expected.clone()
    found[:, :4] = 0
    assert check(found, expected).startswith("first is off by")


def test_what_could_not_be_seen_is_named_unless_it_is_not_used(expected):
    expected[:, :4] = 0
    assert verdict(expected, expected).unseen == ["first"]
    assert verdict(expected, expected, unused=frozenset({"first"})).unseen == []
    expected[:, :4] = 1e-9
    assert verdict(expected, expected).unseen == ["first"]


def test_parameters_that_are_zero_are_something_else_for_the_time():
    model = Two(torch.bfloat16)
    with torch.no_grad():
        model.first.zero_()
        model.first[0, 0] = -0.0
    before = model.first.detach().clone().view(torch.int16)
    with without_zeros(model):
        assert model.first.all()
        assert torch.equal(model.second, torch.ones(6, dtype=torch.bfloat16))
    assert torch.equal(model.first.detach().view(torch.int16), before)
