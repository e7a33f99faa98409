"""``benchmarks/peers.py``: exact scores beside other packages."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from dataflex.testing import tiny_model, tiny_tokenizer
from helpers.scripts import load_script
from measuring.scorers import DATTRI, LOOP, OURS, PLAIN, WAYS, Way

peers = load_script("benchmarks/peers.py")


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return f"--model {tmp_path}/model --rows 6 --targets 3 --rounds 1 --rank 2 --batch-tokens 300".split()


def test_every_way_gives_the_scores_of_the_loop(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peers.main([*arguments, "--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")])
    printed = capsys.readouterr().out
    ways = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["ways"]
    assert {PLAIN, OURS, LOOP} <= set(ways)
    assert all(len(way["wall"]) == 1 for way in ways.values())
    assert "their scores are others" not in printed
    assert ways[OURS]["scores_differ_by"] < 1e-5
    assert f"| {OURS} | " in (tmp_path / "out.md").read_text(encoding="utf-8")
    for way in WAYS:
        absent = importlib.util.find_spec(way.module) is None
        assert (f"skipped: {way.name}: pip install {way.package}" in printed) == absent
        assert (way.name in ways) == (not absent)


def test_other_scores_and_packages_that_are_faster_are_said(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Way(DATTRI, lambda task: lambda: torch.zeros(len(task.candidates.data), dtype=torch.float64))
    monkeypatch.setattr(peers, "WAYS", (*WAYS[:3], wrong))
    assert peers.main(arguments) == 1
    printed = capsys.readouterr().out
    assert f"their scores are others: {DATTRI}" in printed
    assert "dataflex is slower: " in printed
    assert printed.rstrip().endswith(DATTRI)
