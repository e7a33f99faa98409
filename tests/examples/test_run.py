from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from helpers.scripts import ROOT, load_script


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "quickstart"))
    return load_script("examples/quickstart/run.py")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any]]]:
    made: list[tuple[list[str], dict[str, Any]]] = []

    def fake_run(command: list[str], **options: Any) -> SimpleNamespace:
        made.append((command, options))
        return SimpleNamespace(returncode=7 if "seed=13" in command else 0)

    monkeypatch.setattr(subprocess, "run", fake_run)
    return made


def test_it_trains_from_the_root_with_the_fetched_model_and_the_overrides(
    run: ModuleType,
    calls: list[tuple[list[str], dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "fetch", lambda folder: folder)
    monkeypatch.setenv("DATAFLEX_MODELS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run.run(["seed=3", "output_dir=output/other"], hub=False) == 0
    (command, options) = calls[0]
    assert command[:5] == [sys.executable, "-m", "dataflex", "train", "examples/quickstart/nice.yaml"]
    assert command[5:] == [
        f"model_name_or_path={tmp_path / 'SmolLM2-135M-Instruct'}",
        "seed=3",
        "output_dir=output/other",
    ]
    assert options["cwd"] == ROOT
    assert f"Paths start at {ROOT}" in capsys.readouterr().out


def test_another_model_is_not_fetched_and_a_failure_is_passed_on(
    run: ModuleType,
    calls: list[tuple[list[str], dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run, "fetch", lambda folder: pytest.fail(f"fetched {folder}"))
    assert run.run(["model_name_or_path=mine", "seed=13"], hub=False) == 7
    assert calls[0][0][5:] == ["model_name_or_path=mine", "seed=13"]
    assert capsys.readouterr().out == ""
