"""Each instruction set of this processor in turn, for tests of the native kernels."""

from __future__ import annotations

import pytest

from dataflex.projection.kernels.native import native_status


@pytest.fixture(params=["avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DATAFLEX_ISA", request.param)
    kernels = native_status().module
    try:
        assert kernels is not None
        assert kernels.isa() == request.param
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    return str(request.param)
