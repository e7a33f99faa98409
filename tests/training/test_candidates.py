"""Runs that look at some rows only: what they leave, and what a resumed one does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dataflex.report.run import print_report
from dataflex.selectors.less import LessSelector
from dataflex.training.folder import folders_of
from helpers.runs import tiny_trainer


def less(**params: Any) -> LessSelector:
    """Sixteen of 24 rows drawn, of which the prefilter leaves twelve."""
    prefilter = {"name": "rds", "keep": 0.75}
    return LessSelector(**({"proj_dim": 128, "save_interval": 5, "candidates": 16, "prefilter": prefilter} | params))


def scores(folder: Path) -> dict[str, list[float | None]]:
    return {
        file.name: pq.read_table(file).column("score").to_pylist()
        for file in sorted(folder.glob("selections/*.parquet"))
    }


def test_a_run_looks_at_other_rows_each_time_and_a_resumed_one_at_the_same(tmp_path, capsys):
    whole = tmp_path / "whole"
    tiny_trainer(whole, selector=less()).train()
    found = scores(whole)
    looked_at = {name: [row for row, score in enumerate(column) if score is not None] for name, column in found.items()}
    assert [len(rows) for rows in looked_at.values()] == [12, 12]
    assert len({tuple(rows) for rows in looked_at.values()}) == 2
    history = [json.loads(line) for line in (whole / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["selection_looked_at"] for entry in history if "selection_round" in entry] == [12, 12]
    print_report(whole)
    assert "looked at" in capsys.readouterr().out
    resumed = tmp_path / "resumed"
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "checkpoint-8")  # the end: the second selection is made again
    tiny_trainer(resumed, selector=less(), resume_from_checkpoint=True).train()
    assert scores(resumed) == found


def test_every_folder_that_is_written_to_is_held(tmp_path):
    selector = less(
        cache_dir=tmp_path / "a", prefilter={"name": "rds", "keep": 0.5, "params": {"cache_dir": tmp_path / "b"}}
    )
    assert folders_of(tmp_path, selector) == [tmp_path, tmp_path / "a", tmp_path / "b"]
    assert folders_of(tmp_path, less()) == [tmp_path]
