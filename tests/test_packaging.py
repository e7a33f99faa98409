from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from helpers.scripts import load_script

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


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["project"]["version"]


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_files_of_the_forge_are_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))


def test_wheels_with_and_without_cuda_are_built_for_the_same_interpreters() -> None:
    plain = PROJECT["tool"]["cibuildwheel"]
    cuda = tomllib.loads((ROOT / "tools" / "cibuildwheel-cuda.toml").read_text(encoding="utf-8"))["tool"][
        "cibuildwheel"
    ]
    assert (cuda["build"], cuda["test-command"]) == (plain["build"], plain["test-command"])
    assert cuda["environment"]["DATAFLEX_CUDA"] == "1"


def test_the_smoke_test_works_here() -> None:
    load_script("tools/smoke.py").selected_from_python()


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("dataflex_sdk-1.0-{own}-{own}-manylinux_2_28_x86_64.whl", True),
        ("dataflex_sdk-1.0-{own}-{own}-macosx_11_0_arm64.whl", True),
        ("dataflex_sdk-1.0-{own}-{own}-linux_x86_64.whl", False),
        ("dataflex_sdk-1.0-py3-none-any.whl", False),
    ],
)
def test_a_wheel_that_does_not_say_where_it_runs_is_refused(name: str, good: bool) -> None:
    dist = load_script("tools/dist.py")
    wheel = Path(name.format(own=f"cp{sys.version_info.major}{sys.version_info.minor}"))
    if good:
        dist.check_tags(wheel)
    else:
        with pytest.raises(SystemExit, match="should be"):
            dist.check_tags(wheel)
