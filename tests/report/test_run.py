from __future__ import annotations

import html as html_module
import json
from dataclasses import replace

import numpy as np
import pytest

from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import DataError
from dataflex.report.run import NO_TASK, print_report, read_report
from dataflex.selectors.base import Selection
from dataflex.testing import tiny_dataset
from dataflex.training.outputs import write_selection
from dataflex.types import group_names
from dataflex.utils.files import write_json


@pytest.fixture
def finished(tmp_path):
    """A run of two selections over six candidates of three tasks."""
    dataset = tiny_dataset(6, seed=2)
    for round_number, (step, chosen) in enumerate(((2, [0, 1, 2]), (10, [2, 1, 5])), start=1):
        scores = np.array([0.5, 0.25, 0.125, -np.inf, 0.0, -0.5]) * round_number
        report = {"seconds": {"answers": 1.0, "training gradients": 2.5}}
        selection = Selection(np.array(chosen), scores, "nice", step, round_number, report)
        write_selection(tmp_path / "selections" / f"step-{step}.parquet", selection, dataset, "task")
    write_json(tmp_path / "all_results.json", {"steps": 20, "seconds": {"training": 4.0, "selection": 8.0}})
    return tmp_path, group_names(dataset.samples, "task")


def test_tasks_are_counted_over_all_selections(finished):
    folder, tasks = finished
    report = read_report(folder)
    assert [selection.facts["step"] for selection in report.selections] == [2, 10]
    chosen = [0, 1, 2, 2, 1, 5]
    finite = {0: 0.75, 1: 0.375, 2: 0.1875, 4: 0.0, 5: -0.75}
    for row in report.groups:
        members = [index for index, task in enumerate(tasks) if task == row.task]
        assert row.candidates == len(members)
        assert row.selected == sum(chosen.count(index) for index in members)
        assert row.share == len(members) / 6
        assert row.lift == pytest.approx(row.selected / 6 / (len(members) / 6))
        assert row.mean_score == pytest.approx(np.mean([finite[index] for index in members if index in finite]))
    assert sum(row.selected for row in report.groups) == 6
    assert [row.selected for row in report.groups] == sorted((row.selected for row in report.groups), reverse=True)


def test_seconds_of_selections_are_split(finished):
    assert read_report(finished[0]).seconds == {
        "training": 4.0,
        "selection: answers": 2.0,
        "selection: training gradients": 5.0,
        "selection: other": 1.0,
    }


def test_the_report_is_printed_and_written(finished, capsys):
    folder, tasks = finished
    print_report(folder)
    printed = capsys.readouterr().out
    assert all(task in printed for task in set(tasks))
    assert "share of selected" in printed
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert all(f"<td>{task}</td>" in html for task in set(tasks))


def test_html_escapes_what_it_shows(finished, tmp_path):
    folder, _ = finished
    write_json(folder / "all_results.json", {"note": "<img src=x onerror=alert(1)>", "seconds": {}})
    print_report(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html


def test_selections_without_scores_or_tasks(tmp_path):
    dataset = tiny_dataset(4)
    selection = Selection(np.array([1, 3]), None, "random", 1, 1)
    write_selection(tmp_path / "selections" / "step-1.parquet", selection, dataset, "no such column")
    write_json(tmp_path / "all_results.json", {})
    (row,) = read_report(tmp_path).groups
    assert (row.task, row.candidates, row.selected, row.mean_score) == (NO_TASK, 4, 2, None)


def test_a_run_without_selections_has_a_report_too(tmp_path, capsys):
    write_json(tmp_path / "all_results.json", {"seconds": {"training": 1.0}})
    print_report(tmp_path)
    assert "training" in capsys.readouterr().out


def test_a_folder_without_a_run_is_said(tmp_path):
    with pytest.raises(DataError, match=r"all_results\.json is missing"):
        read_report(tmp_path)


def test_the_selection_file_names_rows_and_ranks(tmp_path):
    import pyarrow.parquet as pq

    dataset = tiny_dataset(4)
    write_selection(tmp_path / "s.parquet", Selection(np.array([3, 0]), np.arange(4.0), "x", 5, 2), dataset, "task")
    table = pq.read_table(tmp_path / "s.parquet")
    assert json.loads(table.schema.metadata[b"dataflex"]) == {"selector": "x", "step": 5, "round": 2, "report": {}}
    columns = table.to_pydict()
    assert columns["rank"] == [1, None, None, 0]
    assert columns["chosen"] == [True, False, False, True]
    assert columns["id"] == [sample.id for sample in dataset.samples]
    assert columns["score"] == [0.0, 1.0, 2.0, 3.0]


HOSTILE = ["[/]", "[red]x[/red]", ":smile:", "\x1b[2J", "\x9b31m", "‮gpj", "a\nb", "<b>&", "x" * 500]


def test_names_of_any_kind_are_text_in_the_tables_and_on_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    examples = [
        replace(example, sample=replace(example.sample, metadata={"task": name}))
        for example, name in zip(tiny_dataset(9), HOSTILE, strict=True)
    ]
    report = {"seconds": {"[/red]\x1b[2J": 1.0}}
    selection = Selection(np.arange(4), None, "[/link]", 1, 1, report)
    folder = tmp_path / "[bold]run"
    write_selection(folder / "selections" / "step-1.parquet", selection, TokenizedDataset(examples), "task")
    write_json(folder / "all_results.json", {"seconds": {"selection": 2.0}, "\x1b[2J": "[/red]\x1b[2J"})
    print_report(folder)
    printed, html = capsys.readouterr().out, (folder / "report.html").read_text(encoding="utf-8")
    assert not {"\x1b", "\x9b", "‮"} & set(printed + html)
    for name in ("[/]", "[red]x[/red]", ":smile:", r"\x1b[2J", r"\x9b31m", r"\u202egpj", r"a\nb", "<b>&"):
        assert name in printed
        assert html_module.escape(name) in html
    assert "[/link]: 1 selection" in printed
    assert "[/red]" in printed
    assert "[bold]run" in printed
