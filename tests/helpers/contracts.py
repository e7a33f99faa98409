"""Runs a contract as pytest would, and says what fails."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any
from unittest import SkipTest


def failures(contract: Any, folder: Path) -> set[str]:
    """Names of the tests that fail; skipped ones do not."""
    failed = set()
    for name in sorted(name for name in dir(contract) if name.startswith("test_")):
        test, arguments = getattr(contract, name), []
        if "tmp_path" in inspect.signature(test).parameters:
            arguments = [folder / name]
            arguments[0].mkdir()
        try:
            test(*arguments)
        except SkipTest:
            continue
        except AssertionError:
            failed.add(name)
    return failed
