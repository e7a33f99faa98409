from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.errors import GradientError
from dataflex.projection.adam import AdamMoments, AdamVariant, adam_bound, adam_normalize
from helpers.projections import gradients, moments


def settings(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "exp_avg": torch.zeros(3),
        "exp_avg_sq": torch.zeros(3),
        "step": 1,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
    }
    return values | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"exp_avg": torch.zeros(3, dtype=torch.float64)},
            "exp_avg must be float32 of shape (p,), got torch.float64 (3,)",
        ),
        ({"exp_avg_sq": torch.zeros(1, 3)}, "exp_avg_sq must be float32 of shape (p,), got torch.float32 (1, 3)"),
        ({"exp_avg_sq": torch.zeros(4)}, "must have one shape and device"),
        ({"step": 0}, "step must be at least 1, got 0"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers in [0, 1), got (0.9, 1.0)"),
        ({"betas": (0.9,)}, "betas must be two numbers"),
        ({"eps": -1e-8}, "eps must be a finite number of at least 0, got -1e-08"),
        ({"eps": math.nan}, "eps must be a finite number"),
        ({"rates": ((2, 1.0),)}, "rates must end at 3, each after the one before"),
        ({"rates": ((2, 1.0), (2, 1.0), (3, 0.5))}, "rates must end at 3"),
        ({"rates": ((3, 2.0),)}, "rates must be in [0, 1.0]"),
        ({"variant": "adam"}, "variant must be one of adamw, less, second_moment, got 'adam'"),
    ],
)
def test_wrong_moments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GradientError) as caught:
        AdamMoments(**settings(**changes))
    assert message in str(caught.value)


def test_all_problems_of_moments_are_reported_at_once() -> None:
    with pytest.raises(GradientError) as caught:
        AdamMoments(**settings(step=0, eps=-1.0, betas=(2.0, 0.5)))
    assert [word in str(caught.value) for word in ("step", "eps", "betas")] == [True] * 3


def test_slice_keeps_settings_and_shares_memory() -> None:
    whole = moments(10, "less")
    part = whole.slice(3, 7)
    assert len(part) == 4
    assert part.settings == whole.settings
    assert part.exp_avg.data_ptr() == whole.exp_avg[3:].data_ptr()
    assert torch.equal(part.exp_avg_sq, whole.exp_avg_sq[3:7])


def with_rates(whole: AdamMoments, *rates: tuple[int, float]) -> AdamMoments:
    return replace(whole, largest_rate=max(rate for _, rate in rates), rates=rates)


def test_slices_and_runs_keep_the_rates_of_their_parameters() -> None:
    whole = with_rates(moments(10), (3, 0.5), (4, 2.0), (10, 1.0))
    assert whole.slice(0, 3).rates == ((3, 0.5),)
    assert whole.slice(2, 6).rates == ((1, 0.5), (2, 2.0), (4, 1.0))
    assert whole.slice(5, 10).rates == ((5, 1.0),)
    assert whole.slice(4, 4).rates == ()
    assert [(start, stop, run.rates) for start, stop, run in whole.slice(2, 6).runs()] == [
        (0, 1, ((1, 0.5),)),
        (1, 2, ((1, 2.0),)),
        (2, 4, ((2, 1.0),)),
    ]
    with pytest.raises(GradientError, match="3 learning rates have no common constants"):
        whole.constants()


@pytest.mark.parametrize("variant", ["adamw", "less", "second_moment"])
def test_a_rate_multiplies_the_step(variant: AdamVariant) -> None:
    plain = moments(500, variant)
    rated = with_rates(plain, (100, 0.3), (400, 1.7), (500, 0.0))
    grads = gradients(4, 500)
    expected = adam_normalize(grads, plain) * torch.tensor([0.3] * 100 + [1.7] * 300 + [0.0] * 100)
    torch.testing.assert_close(adam_normalize(grads, rated), expected, rtol=1e-5, atol=1e-7)


def test_constants_are_rounded_once_from_float64() -> None:
    constants = AdamMoments(**settings(step=4)).constants()
    exact = (0.9, 1 - 0.9, 0.999, 1 - 0.999, 1 / (1 - 0.9**5), 1 / (1 - 0.999**5), 1e-8)
    assert constants == tuple(float(np.float32(value)) for value in exact)
    assert constants[3] != float(np.float32(1) - np.float32(0.999))


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95), (0.0, 0.99)])
def test_adamw_variant_is_the_step_that_torch_takes(betas: tuple[float, float]) -> None:
    count, steps = 1000, 7
    parameter = torch.nn.Parameter(torch.zeros(count))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, betas=betas, eps=1e-6, weight_decay=0.0)
    for step in range(steps):
        parameter.grad = gradients(1, count, seed=step)[0]
        optimizer.step()
    state = optimizer.state[parameter]
    adam = AdamMoments(state["exp_avg"].clone(), state["exp_avg_sq"].clone(), int(state["step"]), betas, 1e-6)

    gradient = gradients(1, count, seed=99)
    with torch.no_grad():
        parameter.zero_()
    parameter.grad = gradient[0].clone()
    optimizer.step()

    torch.testing.assert_close(adam_normalize(gradient, adam)[0], -parameter.detach(), rtol=2e-6, atol=5e-7)


def test_less_variant_is_the_formula_of_less() -> None:
    adam, grads = moments(1000, "less"), gradients(3, 1000)
    g = grads.double()
    exp_avg = 0.9 * adam.exp_avg.double() + 0.1 * g
    exp_avg_sq = 0.999 * adam.exp_avg_sq.double() + 0.001 * g * g
    expected = exp_avg / torch.sqrt(exp_avg_sq + 1e-8)
    torch.testing.assert_close(adam_normalize(grads, adam).double(), expected, rtol=2e-6, atol=5e-7)


def test_second_moment_variant_is_the_step_without_the_first_moment() -> None:
    adam, grads = moments(1000, "second_moment"), gradients(3, 1000)
    g = grads.double()
    exp_avg_sq = 0.999 * adam.exp_avg_sq.double() + 0.001 * g * g
    expected = g / ((exp_avg_sq / (1 - 0.999**6)).sqrt() + 1e-8)
    torch.testing.assert_close(adam_normalize(grads, adam).double(), expected, rtol=1e-6, atol=1e-12)
    other = replace(adam, exp_avg=adam.exp_avg * 7 + 1)
    assert torch.equal(adam_normalize(grads, other), adam_normalize(grads, adam))
    assert torch.equal(
        adam_normalize(grads, adam), adam_normalize(grads, replace(adam, variant="adamw", betas=(0.0, 0.999)))
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_widened_first(dtype: torch.dtype) -> None:
    grads = gradients(2, 50).to(dtype)
    assert torch.equal(adam_normalize(grads, moments(50)), adam_normalize(grads.float(), moments(50)))


def test_overflow_of_the_denominator_is_not_zero() -> None:
    values = adam_normalize(torch.tensor([[1e30, 1.0]]), moments(2))
    assert values[0, 0].isnan()
    assert values[0, 1].isfinite()


def test_square_root_is_correctly_rounded() -> None:
    # v' = v when the gradient is 0 and beta2 v is exact: u = m' / sqrt(v') shows the root.
    bits = torch.randint(1, 0x7F000000, (20000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    adam = AdamMoments(torch.full((20000,), 2.0), bits.view(torch.float32), 1, (0.5, 0.5), 0.0, "less")
    square = np.float32(0.5) * adam.exp_avg_sq.numpy()
    expected = np.float32(1) / np.sqrt(square)
    assert np.array_equal(adam_normalize(torch.zeros(1, 20000), adam)[0].numpy(), expected)


@given(
    b1=st.floats(0, 0.99),
    b2=st.floats(0.01, 0.9999),
    steps=st.integers(1, 60),
    ratio=st.floats(0.05, 1.2),
    variant=st.sampled_from(["adamw", "less"]),
)
def test_bound_holds_for_the_worst_gradients(b1: float, b2: float, steps: int, ratio: float, variant: str) -> None:
    if b1 * b1 >= b2:
        return
    # Cauchy-Schwarz is tight for gradients that grow by b2 / b1 a step; `ratio` looks around that.
    growth = ratio * b2 / max(b1, 0.05)
    mean = square = 0.0
    for step in range(steps):
        gradient = growth**step
        mean, square = b1 * mean + (1 - b1) * gradient, b2 * square + (1 - b2) * gradient**2
    if variant == "adamw":
        mean, square = mean / (1 - b1**steps), square / (1 - b2**steps)
    assert mean / math.sqrt(square) <= adam_bound((b1, b2)) * (1 + 1e-9)
    if variant == "adamw":
        assert mean / math.sqrt(square) <= adam_bound((b1, b2), steps) * (1 + 1e-9)


@given(gradient=st.floats(1e-8, 1e8), before=st.floats(0, 1e8), b2=st.floats(0, 0.9999), steps=st.integers(1, 60))
def test_bound_of_the_second_moment_holds_for_any_moments(
    gradient: float, before: float, b2: float, steps: int
) -> None:
    square = (b2 * before + (1 - b2) * gradient**2) / (1 - b2 ** (steps + 1))
    assert gradient / math.sqrt(square) <= adam_bound((0.0, b2), steps + 1) * (1 + 1e-9)
    assert adam_bound((0.0, b2), steps + 1) <= min(math.sqrt(steps + 1), adam_bound((0.0, b2))) * (1 + 1e-9)


def test_bound_of_the_usual_betas() -> None:
    assert adam_bound((0.9, 0.999)) == pytest.approx(7.27, abs=0.01)
    assert adam_bound((0.0, 0.0 + 1e-12)) == pytest.approx(1.0)
    assert adam_bound(moments(3, "second_moment").effective_betas) == pytest.approx(31.62, abs=0.01)
    assert adam_bound((0.9, 0.999), 1) == pytest.approx(1.0)
    assert adam_bound((0.9, 0.999), 10**6) == pytest.approx(adam_bound((0.9, 0.999)))
    assert adam_bound((0.9, 1 - 1e-8)) == pytest.approx(2294, abs=1)
    assert adam_bound((0.9, 1 - 1e-8), 1001) == pytest.approx(7.3, abs=0.1)


def test_betas_without_a_bound_are_refused() -> None:
    with pytest.raises(GradientError, match=r"beta1\^2 < beta2, got betas \(0.9, 0.8\)"):
        adam_bound((0.9, 0.8))
