"""``make gpu``: the script that runs on a machine with a GPU, with what a CPU can show of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from helpers.scripts import ROOT, load_script


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return load_script("tools/gpu.py")


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_a_device_is_told_so_and_nothing_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "gpu.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"no CUDA device: torch {torch.__version__}" in done.stderr
    assert "Nothing was run." in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_step_has_a_limit_and_on_a_gpu_all_take_less_than_eight_minutes(
    gpu: ModuleType, device: str, tmp_path: Path
) -> None:
    (tmp_path / "a.whl").touch()
    planned = gpu.steps(device, tmp_path, tmp_path)
    assert tuple(step.name for step in planned) == gpu.NAMES
    assert all(step.limit > 0 for step in planned)
    assert device == "cpu" or sum(step.limit for step in planned) < 8 * 60


def test_every_file_with_tests_for_a_gpu_is_run(gpu: ModuleType, tmp_path: Path) -> None:
    mark = "@pytest.mark." + "gpu"
    marked = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if mark in path.read_text()}
    [tests] = [step for step in gpu.steps("cuda", None, tmp_path) if step.name == "tests"]
    assert {part for part in tests.command if part.startswith("tests/")} == marked


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_others(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    child = (
        "import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', 'while 1: pass'])"
    )
    write = f"import json; open({str(tmp_path / 'nice.json')!r}, 'w').write(json.dumps({{'n': 3}}))"
    planned = [
        gpu.Step("build", python("print('bad'); raise SystemExit(3)"), 60),
        gpu.Step("tests", python(child), 3),
        gpu.Step("nice", python(write), 60, lambda found: f"n is {found['n']}"),
    ]
    monkeypatch.setattr(gpu, "steps", lambda device, wheels, out: planned)
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert [(step["name"], step["state"]) for step in report["steps"]] == [
        ("build", "failed"),
        ("tests", "too long"),
        ("nice", "ok"),
    ]
    assert [step["printed"] for step in report["steps"]] == [["bad"], ["begun"], []]
    assert report["steps"][2]["found"] == {"n": 3}
    assert "| nice | ok | " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.integration
def test_its_parts_run_tiny_on_a_cpu(gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["projection", "model", "nice"]
    code = gpu.main(["--device", "cpu", "--out", str(tmp_path), "--steps", *parts])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    assert code == 0, printed
    found = {step["name"]: step["found"] for step in report["steps"]}
    assert list(found) == parts
    assert found["model"]["deviation"] < 6
    assert all(way["rows a second"] > 0 and way["peak bytes"] > 0 for way in found["model"]["ways"].values())
    assert found["nice"]["selections"] == 2
    assert {"memory read", "sjlt s=8, Adam fused"} <= {one["name"] for one in found["projection"]["results"]}
    assert "selections on cpu in" in printed
