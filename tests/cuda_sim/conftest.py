from __future__ import annotations

from pathlib import Path

import pytest

from cuda_sim.harness import Builder, Emulator, find_compiler


@pytest.fixture(scope="session")
def builder(request: pytest.FixtureRequest) -> Builder:
    compiler = find_compiler()
    if compiler is None:
        pytest.skip("no g++ or clang++ to compile the emulation with")
    assert request.config.cache is not None
    return Builder(compiler, request.config.cache.mkdir("cuda_sim"))


@pytest.fixture
def emulator(builder: Builder, tmp_path: Path) -> Emulator:
    return Emulator(builder.build("plain"), tmp_path)
