"""The comparison of mixers and weighters in ``benchmarks/efficacy``."""

from __future__ import annotations

import json

import pytest

import dataflex as df
from dataflex.testing import tiny_model, tiny_tokenizer
from efficacy import curricula
from efficacy.curricula import FAMILIES, TARGET, TESTED, domains, markdown


def test_rows_that_are_tested_are_in_no_domain():
    found = domains(1)
    trained = {(row["instruction"], row["output"]) for row in found.training}
    assert {part: len(rows) for part, rows in found.tested.items()} == {TARGET: TESTED, FAMILIES: TESTED}
    for rows in (*found.tested.values(), found.anchors):
        assert not trained & {(row["instruction"], row["output"]) for row in rows}
    sizes = {name: sum(row["domain"] == name for row in found.training) for name in (TARGET, FAMILIES, "noise")}
    assert sizes == {TARGET: 24, FAMILIES: 184, "noise": 24}
    assert not any(row["task"] == "wrong" for row in found.training)


def test_each_method_is_compared_with_its_own_baseline():
    names = ["static, by size", "odm", "random rows", "adapt"]
    results = [
        {"method": name, "seed": seed, "losses": {TARGET: mean, FAMILIES: mean}, "mean": mean, "train_seconds": 10.0}
        for seed in (1, 2)
        for name, mean in zip(names, (1.0, 1.5, 2.0, 1.9 + seed), strict=True)
    ]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown(results).splitlines()[2:]]
    assert [row[0] for row in table] == names
    assert [row[4] for row in table] == ["-", "+0.500, +0.500", "-", "+0.900, +1.900"]
    assert table[3][3] == "3.400"


@pytest.mark.parametrize("name", ["odm", "loss, extremes"])
def test_a_method_is_trained_and_measured(tmp_path, monkeypatch, capsys, name):
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(curricula, "SCHEDULE", df.Schedule(1, 1, 2))
    file = tmp_path / "results.json"
    options = ["--model", str(tmp_path / "model"), "--seeds", "1", "--methods", name, "--json", str(file)]
    assert curricula.main(options) == 0
    [found] = json.loads(file.read_text())
    assert found["mean"] == pytest.approx(sum(found["losses"].values()) / 2)
    assert len(found["mixtures"]) == (3 if name == "odm" else 0)
    assert f"| {name} |" in capsys.readouterr().out
