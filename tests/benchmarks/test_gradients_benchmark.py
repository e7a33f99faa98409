from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from dataflex.testing import tiny_model, tiny_tokenizer
from helpers.scripts import ROOT, load_script


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_benchmark_compares_all_variants(tmp_path, model_folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = load_script("benchmarks/gradients.py")
    report = tmp_path / "report.json"
    options = {"model": model_folder, "rows": 6, "turns": 2, "rounds": 2, "dim": 256, "trak-rows": 1, "json": report}
    arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    monkeypatch.setattr(sys, "argv", ["gradients.py", *arguments, "--trak-columns", "25", "--scaling"])
    script.main()
    printed = capsys.readouterr().out
    facts = json.loads(report.read_text(encoding="utf-8"))
    times = facts["times"]
    assert all(len(times[name]["wall"]) == 2 for name in ("plain step", "features", "exact", "vmap"))
    assert "| exact / plain step <= 1.10, wall | " in printed
    assert "| plain step |" in printed
    assert "the rules are compared with plain gradients" in printed
    assert "| padding <= 3% of the tokens | 0.2% | yes |" in printed
    assert "| exact: host's processor time <= 150 ms a batch of 448 LoRA tensors | " in printed
    assert facts["comparison"] > 0
    assert [n for n, _ in facts["scaling"]] == [1, 3, 6]
    if importlib.util.find_spec("trak") is None:
        assert facts["absent"] == {"one by one + TRAK": "not installed (pip install traker)"}
        assert "| one by one + TRAK | not installed (pip install traker) |" in printed
    else:
        assert facts["absent"] == {}
        assert len(times["one by one + TRAK"]["wall"]) == 1


def test_features_take_no_more_memory_than_the_plain_step(model_folder, monkeypatch):
    """48 rows in two batches and more were said to take 1.9 GB more: the resident set of a process, not the tensors."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = load_script("benchmarks/gradients.py")
    monkeypatch.setattr(
        sys, "argv", f"x --model {model_folder} --rows 24 --dim 256 --batch-tokens 400 --memory --vmap-rows 0".split()
    )
    setting = script.Setting(script.parse())
    assert len(setting.batches) > 1
    times, _ = script.compare(setting)
    plain, features, exact = (times[name].memory for name in ("plain step", "features", "exact"))
    assert plain > 2**20
    assert features < plain + 2**18  # the (b, k) sums and one module's gradients
    assert exact < plain + 2**18
    assert "MiB + directions | yes |" in script.goals(times, setting.directions)
    assert "| plain step |" in script.memory_table(times)
