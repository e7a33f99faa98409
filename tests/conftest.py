"""Settings of all tests: no hub, nothing in the home folder, no limit on how long a generated example may take."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

if "DATAFLEX_CACHE" not in os.environ:  # processes that a test starts inherit it, and remove nothing
    os.environ["DATAFLEX_CACHE"] = tempfile.mkdtemp(prefix="dataflex-tests-")
    atexit.register(shutil.rmtree, os.environ["DATAFLEX_CACHE"], ignore_errors=True)

# The machine may be busy: time is never a reason to fail.
settings.register_profile("dataflex", deadline=None)
settings.load_profile("dataflex")


def pytest_collection_finish() -> None:
    """Leave what the test modules have imported to no garbage collection.

    accelerate and the trainers collect at every end of a run, which takes half a second of going through the same
    million objects of torch and transformers: half of a tiny run.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of reports are laid out in the tests of the report alone: they would be a third of each tiny run."""
    if "report" not in request.path.parts:
        monkeypatch.setattr("dataflex.report.page.svg", lambda figure, key, label: "<svg></svg>")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """A test that changes torch's number of threads changes sums, in the last bit, for itself alone."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)
