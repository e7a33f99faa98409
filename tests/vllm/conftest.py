"""Real vLLM engines on SmolLM2-135M: ``make test-vllm``. One engine at a time: each takes about 3.5 GB."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="session")
def model_path() -> str:
    """The folder of SmolLM2-135M-Instruct: ``examples/quickstart/fetch_model.py`` makes it."""
    path = Path(os.environ.get("DATAFLEX_MODELS") or MODELS) / "SmolLM2-135M-Instruct"
    assert (path / "config.json").exists(), f"no model in {path}: run examples/quickstart/fetch_model.py"
    return str(path)
