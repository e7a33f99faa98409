"""Backends and thread counts for tests of the projection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dataflex.projection.kernels.native import native_status
from helpers.projections import torch_only


@pytest.fixture(params=["native", "torch"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "native":
        if native_status().module is None:
            pytest.skip(f"no native kernels: {native_status().reason}")
        yield request.param
    else:
        with torch_only():
            yield request.param


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
