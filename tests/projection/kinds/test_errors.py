from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dataflex.errors import ConfigError, GradientError, PluginError, ProjectionError
from dataflex.projection.adam import AdamMoments
from dataflex.projection.projector import Projector
from helpers.projections import moments


@pytest.mark.parametrize(
    ("dim", "options", "message", "hint"),
    [
        (100, {}, "sjlt: dim must be a multiple of 16 * sparsity = 128, got 100", "use dim 128"),
        (64, {}, "= 128, got 64", "use dim 128, or sparsity 4 (less accurate)"),
        (4100, {}, "= 128, got 4100", "use dim 4096"),
        (160, {"sparsity": 7}, "= 112, got 160", "use dim 112, or sparsity 5 (less accurate)"),
    ],
)
def test_dimensions_that_do_not_fit(dim: int, options: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(ProjectionError) as caught:
        Projector(dim, **options)
    assert message in caught.value.message
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "sjlt: dim"),
        ({"dim": 128, "seed": -1}, "sjlt: seed"),
        ({"dim": 128, "seed": 2**64}, "sjlt: seed"),
        ({"dim": 128, "sparsity": 0}, "sjlt: sparsity"),
        ({"dim": 128, "density": 3}, "sjlt: unknown key 'density'"),
        ({"dim": 128, "kind": "identity", "sparsity": 3}, "identity: unknown key 'sparsity'"),
    ],
)
def test_wrong_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Projector(**arguments)
    assert message in str(caught.value)


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(PluginError, match="did you mean 'sjlt'"):
        Projector(128, kind="sjl")


@pytest.mark.parametrize(
    ("grads", "adam", "message"),
    [
        (torch.zeros(5), None, "gradients must have shape (b, p), got (5,)"),
        (torch.zeros(2, 5, dtype=torch.float64), None, "must be float32, bfloat16 or float16, got torch.float64"),
        (torch.zeros(5, 2).T, None, "values of a row must be contiguous, got strides (1, 2): call .contiguous()"),
        (torch.zeros(2, 5), moments(4), "moments of 4 parameters do not fit gradients of 5"),
        (torch.zeros(2, 5, device="meta"), moments(5), "moments are on cpu, gradients on meta"),
    ],
)
def test_gradients_that_do_not_fit(grads: Tensor, adam: AdamMoments | None, message: str) -> None:
    with pytest.raises(ProjectionError) as caught:
        Projector(128).project(grads, adam)
    assert message in str(caught.value)


def test_all_problems_of_a_block_are_reported_at_once() -> None:
    accumulator = Projector(128).accumulator(2)
    with pytest.raises(ProjectionError) as caught:
        accumulator.add(torch.zeros(3, 5, dtype=torch.int32), -1, moments(4))
    for message in ("shape (2, n), got (3, 5)", "got torch.int32", "offset must be at least 0, got -1", "moments of 4"):
        assert message in str(caught.value)


def test_blocks_on_another_device_are_refused() -> None:
    accumulator = Projector(128).accumulator(2)
    with pytest.raises(ProjectionError, match="gradients must be on cpu, got meta"):
        accumulator.add(torch.zeros(2, 5, device="meta"), 0)


def test_blocks_must_share_their_settings() -> None:
    accumulator = Projector(128).accumulator(1)
    accumulator.add(torch.zeros(1, 4), 0, moments(4))
    with pytest.raises(ProjectionError, match="must share step, betas, eps, variant and largest rate"):
        accumulator.add(torch.zeros(1, 4), 4, moments(4, steps=6))
    with pytest.raises(ProjectionError, match="must share step, betas, eps, variant and largest rate"):
        accumulator.add(torch.zeros(1, 4), 4)


def test_betas_without_a_bound_are_refused() -> None:
    adam = AdamMoments(torch.zeros(4), torch.zeros(4), 1, (0.9, 0.5), 1e-8)
    with pytest.raises(GradientError, match=r"only if beta1\^2 < beta2"):
        Projector(128).project(torch.zeros(1, 4), adam)
