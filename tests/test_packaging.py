from __future__ import annotations

import importlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS_WITH_PINS = ["api", "near", "docs", "dev"]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"]
    lines = [*PROJECT["project"]["dependencies"], *(line for extra in EXTRAS_WITH_PINS for line in extras[extra])]
    return [Requirement(line) for line in lines if not line.startswith(PROJECT["project"]["name"])]


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_constraints_pin_every_dependency_within_its_bounds(requirement: Requirement) -> None:
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_data_file_is_packaged() -> None:
    package = ROOT / "python" / "dataflex"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["dataflex"]
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    data = {
        path
        for path in package.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".so"} and "__pycache__" not in path.parts
    }
    assert data - packaged == set()


@pytest.mark.parametrize(("script", "target"), PROJECT["project"]["scripts"].items())
def test_commands_exist(script: str, target: str) -> None:
    module, _, function = target.partition(":")
    assert callable(getattr(importlib.import_module(module), function)), script
