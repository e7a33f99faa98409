from __future__ import annotations

import html as html_module
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflex.curriculum.selection_file import BEST, FIRST_OUT, LAST, LOWEST, write_selection
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import DataError
from dataflex.report.groups import NOTHING
from dataflex.report.read import read_report
from dataflex.report.run import print_report
from dataflex.report.sheets import MOST_GROUPS, sheets
from dataflex.selectors.base import Selection
from dataflex.testing import tiny_dataset
from dataflex.types import group_names
from dataflex.utils.files import write_json


@pytest.fixture
def finished(tmp_path):
    """A run of two selections over six candidates of three tasks."""
    dataset = tiny_dataset(6, seed=2)
    for round_number, (step, chosen) in enumerate(((2, [0, 1, 2]), (10, [2, 1, 5])), start=1):
        scores = np.array([0.5, 0.25, 0.125, -np.inf, 0.0, -0.5]) * round_number
        report = {
            "seconds": {"answers": 1.0, "training gradients": 2.5},
            "rewards": {"mean": 0.25, "missing": 3},
            "left_out": {"answers without a reward": round_number},
        }
        selection = Selection(np.array(chosen), scores, "nice", step, round_number, report)
        write_selection(tmp_path / "selections" / f"step-{step}.parquet", selection, dataset, "task")
    counts = {"total": 9, "kept": 6, "truncated": 2, "dropped": 3, "tokens": 100, "label_tokens": 40}
    results = {"steps": 20, "seconds": {"training": 4.0, "selection": 8.0}, "data": {"training": counts}}
    write_json(tmp_path / "all_results.json", results)
    return tmp_path, group_names(dataset.samples, "task")


def sheet(folder, title):
    """The rows of the table whose title starts so, by their first cell."""
    (found,) = [found for found in sheets(read_report(folder)) if found.title.startswith(title)]
    heads = [column.name for column in found.columns]
    return {row[0]: dict(zip(heads, row, strict=True)) for row in found.cells}


def without_tasks(count=6):
    """Rows as Alpaca and ShareGPT data have them: no task column."""
    return [replace(example, sample=replace(example.sample, metadata={})) for example in tiny_dataset(count, seed=2)]


def test_tasks_are_counted_over_all_selections(finished):
    folder, tasks = finished
    chosen = [0, 1, 2, 2, 1, 5]
    finite = {0: 0.75, 1: 0.375, 2: 0.1875, 4: 0.0, 5: -0.75}
    rows = sheet(folder, "selected by task")
    for task, row in rows.items():
        members = [index for index, other in enumerate(tasks) if other == task]
        assert row["rows"] == str(len(members))
        assert row["selected"] == str(sum(chosen.count(index) for index in members))
        assert row["share"] == f"{len(members) / 6:.1%}"
        assert row["lift"] == f"{int(row['selected']) / 6 / (len(members) / 6):.2f}x"
        assert row["mean score"] == f"{np.mean([finite[index] for index in members if index in finite]):+.4f}"
    assert sum(int(row["selected"]) for row in rows.values()) == 6
    assert [int(row["selected"]) for row in rows.values()] == sorted(
        (int(row["selected"]) for row in rows.values()), reverse=True
    )


def test_each_selection_has_a_row(finished):
    rows = sheet(finished[0], "nice: 2 selections from 6 rows")
    assert rows["2"] == {
        "step": "2",
        "selected": "3",
        "mean score": "+0.2917",
        "mean score of all": "+0.0750",
        "chosen last time too": "-",
        "order kept": "-",
        "seconds": "3.5",
    }
    assert (rows["10"]["chosen last time too"], rows["10"]["order kept"]) == ("67%", "1.00")


def test_how_far_the_target_can_be_trusted_is_said_a_round_and_a_low_one_is_marked(tmp_path, capsys):
    dataset = tiny_dataset(4, seed=2)
    values = ({"targets": 0.81}, {"targets": 0.21, "answers": 0.55, "groups": None}, {"targets": None, "answers": None})
    for number, reliability in enumerate(values, start=1):
        selection = Selection(np.array([0]), np.zeros(4), "nice", number, number, {"reliability": reliability})
        write_selection(tmp_path / "selections" / f"step-{number}.parquet", selection, dataset, "task")
    write_json(tmp_path / "all_results.json", {})
    found = next(one for one in sheets(read_report(tmp_path)) if one.title == "can the target be trusted?")
    assert found.cells == [
        ("1", "0.81", "-", "the halves say the same"),
        ("2", "0.21", "0.55", "low: mostly noise: rows may be ranked by little more than chance"),
    ]
    assert found.marked == {1}
    print_report(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<tr class="low">') == 1
    assert "can the target be trusted?" in capsys.readouterr().out


def test_rows_that_were_not_looked_at_are_counted_and_have_no_part_in_the_scores(tmp_path):
    dataset = tiny_dataset(6, seed=2)
    scores = np.array([0.5, np.nan, 0.25, -np.inf, np.nan, np.nan])
    write_selection(
        tmp_path / "selections" / "step-2.parquet", Selection(np.array([0]), scores, "less", 2, 1), dataset, "task"
    )
    write_json(tmp_path / "all_results.json", {})
    rows = sheet(tmp_path, "less: 1 selection from 6 rows")
    assert rows["2"]["looked at"] == "3"
    assert rows["2"]["mean score of all"] == "+0.3750"
    by_task = sheet(tmp_path, "selected by task")
    assert sum(int(row["looked at"]) for row in by_task.values()) == 3
    assert sum(int(row["rows"]) for row in by_task.values()) == 6


def test_seconds_of_selections_are_split(finished):
    assert read_report(finished[0]).seconds == {
        "training": 4.0,
        "selection: answers": 2.0,
        "selection: training gradients": 5.0,
        "selection: other": 1.0,
    }


def test_what_was_left_out_is_counted(finished):
    folder, _ = finished
    assert sheet(folder, "left out") == {
        "answers without a reward": {
            "what": "answers without a reward",
            "of the last selection": "2",
            "of all selections": "3",
        }
    }
    row = sheet(folder, "data")["training"]
    assert (row["rows"], row["used"]) == ("9", "6")
    assert (row["nothing to learn, left out"], row["cut to cutoff_len"]) == ("3", "2")
    assert sheet(folder, "what the selector says at step 10")["rewards.missing"]["value"] == "3"


def test_the_report_is_printed_and_written(finished, capsys):
    folder, tasks = finished
    print_report(folder)
    printed = capsys.readouterr().out
    assert all(task in printed for task in set(tasks))
    assert "share of selected" in printed
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert all(f"<td>{task}</td>" in html for task in set(tasks))
    for found in sheets(read_report(folder)):
        assert html_module.escape(found.title) in html
        assert found.title in printed


def test_the_rows_are_counted_once_for_terminal_and_page(finished, monkeypatch):
    made = []
    monkeypatch.setattr("dataflex.report.sections.sheets", lambda *given: made.append(given) or sheets(*given))
    print_report(finished[0])
    assert len(made) == 1


def test_html_escapes_what_it_shows(finished):
    folder, _ = finished
    write_json(folder / "all_results.json", {"note": "<img src=x onerror=alert(1)>", "seconds": {}})
    print_report(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert "&lt;img src=x" in html


def test_data_without_tasks_is_shown_by_source_length_score_and_text(tmp_path, capsys):
    examples = [
        replace(example, sample=replace(example.sample, source=name), input_ids=[1] * tokens)
        for example, name, tokens in zip(
            without_tasks(), ["a.jsonl"] * 2 + ["b.jsonl"] * 4, [5, 60, 64, 65, 200, 9], strict=True
        )
    ]
    dataset = TokenizedDataset(examples)
    scores = np.array([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    selection = Selection(np.array([0, 1, 3]), scores, "less", 4, 1)
    write_selection(tmp_path / "selections" / "step-4.parquet", selection, dataset, "task")
    write_json(tmp_path / "all_results.json", {"seconds": {}})
    titles = [found.title for found in sheets(read_report(tmp_path))]
    assert "selected by task" not in titles
    by_source = sheet(tmp_path, "selected by source")
    assert {name: (row["rows"], row["selected"], row["lift"]) for name, row in by_source.items()} == {
        "a.jsonl": ("2", "2", "2.00x"),
        "b.jsonl": ("4", "1", "0.50x"),
    }
    by_length = sheet(tmp_path, "selected by tokens")
    assert {name: (row["rows"], row["selected"]) for name, row in by_length.items()} == {
        "0-32": ("2", "1"),
        "33-64": ("2", "1"),
        "65-128": ("1", "1"),
        "129-256": ("1", "0"),
    }
    assert list(by_length) == ["0-32", "33-64", "65-128", "129-256"]
    quantiles = sheet(tmp_path, "scores at step 4")
    assert (quantiles["50%"]["of all rows"], quantiles["50%"]["of the selected"]) == ("+0.3500", "+0.5000")
    print_report(tmp_path)
    printed = capsys.readouterr().out
    shown_rows = next(found for found in sheets(read_report(tmp_path)) if found.title == "rows at step 4").cells
    assert [row[0] for row in shown_rows] == [BEST, BEST, BEST, LOWEST, LOWEST, LOWEST]
    assert [row[1] for row in shown_rows] == [examples[index].sample.id for index in (0, 1, 3, 5, 4, 2)]
    assert shown_rows[0][2] == examples[0].sample.prompt[-1]["content"]
    assert shown_rows[0][3] == examples[0].sample.reference
    assert examples[0].sample.reference in printed


def test_the_last_of_the_chosen_and_the_lowest_of_the_others_are_shown(tmp_path):
    dataset = tiny_dataset(20)
    scores = np.arange(20.0)
    scores[3] = -np.inf
    selection = Selection(np.arange(19, 9, -1), scores, "x", 1, 1)
    write_selection(tmp_path / "s.parquet", selection, dataset, "task")
    facts = json.loads(pq.read_table(tmp_path / "s.parquet").schema.metadata[b"dataflex"])
    assert [(row["place"], row["row"]) for row in facts["excerpts"]] == [
        *((BEST, row) for row in (19, 18, 17, 16, 15)),
        *((LAST, row) for row in (11, 10)),
        *((FIRST_OUT, row) for row in (9, 8)),
        *((LOWEST, row) for row in (0, 1, 2)),
    ]


def test_selections_without_scores_or_tasks(tmp_path):
    dataset = tiny_dataset(4)
    selection = Selection(np.array([1, 3]), None, "random", 1, 1)
    write_selection(tmp_path / "selections" / "step-1.parquet", selection, dataset, "no such column")
    write_json(tmp_path / "all_results.json", {})
    row = sheet(tmp_path, "random: 1 selection from 4 rows")["1"]
    assert (row["selected"], row["mean score"], row["seconds"]) == ("2", "-", "-")
    assert "scores at step 1" not in [found.title for found in sheets(read_report(tmp_path))]
    lengths = sheet(tmp_path, "selected by tokens").values()
    assert sum(int(row["selected"]) for row in lengths) == 2


def test_some_rows_without_a_task_are_a_group(tmp_path):
    examples = [*tiny_dataset(2), *without_tasks(2)]
    write_selection(
        tmp_path / "selections" / "step-1.parquet",
        Selection(np.array([3]), None, "x", 1, 1),
        TokenizedDataset(examples),
        "task",
    )
    write_json(tmp_path / "all_results.json", {})
    assert sheet(tmp_path, "selected by task")[NOTHING]["selected"] == "1"


def test_ids_as_tasks_do_not_make_an_endless_table(tmp_path):
    examples = [
        replace(example, sample=replace(example.sample, metadata={"task": str(number)}))
        for number, example in enumerate(tiny_dataset(100))
    ]
    selection = Selection(np.arange(50), None, "x", 1, 1)
    write_selection(tmp_path / "selections" / "step-1.parquet", selection, TokenizedDataset(examples), "task")
    write_json(tmp_path / "all_results.json", {})
    (found,) = [found for found in sheets(read_report(tmp_path)) if found.title == "selected by task"]
    assert len(found.rows) == MOST_GROUPS
    assert "60 more" in found.note


def test_files_of_before_sources_and_lengths_were_written_are_read(finished):
    folder, _ = finished
    for path in (folder / "selections").glob("*.parquet"):
        table = pq.read_table(path)
        facts = json.loads(table.schema.metadata[b"dataflex"])
        del facts["excerpts"]
        older = table.drop_columns(["source", "tokens"]).replace_schema_metadata({b"dataflex": json.dumps(facts)})
        pq.write_table(older, path)
    titles = [found.title for found in sheets(read_report(folder))]
    assert "selected by task" in titles
    assert not {"selected by tokens", "rows at step 10"} & set(titles)


def test_a_run_without_selections_has_a_report_too(tmp_path, capsys):
    write_json(tmp_path / "all_results.json", {"seconds": {"training": 1.0}})
    print_report(tmp_path)
    assert "training" in capsys.readouterr().out


def test_a_folder_without_a_run_is_said(tmp_path):
    with pytest.raises(DataError, match=r"all_results\.json is missing"):
        read_report(tmp_path)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\ufffe", '{"a": ' + "[" * 100_000])
def test_damaged_results_are_an_error_in_one_line(tmp_path, text):
    (tmp_path / "all_results.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"all_results\.json") as caught:
        read_report(tmp_path)
    assert "\n" not in caught.value.message


def test_a_damaged_selection_is_an_error_with_its_name(finished):
    folder, _ = finished
    path = folder / "selections" / "step-10.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"step-10\.parquet"):
        read_report(folder)
    pq.write_table(pa.table({"other": [1]}), path)
    with pytest.raises(DataError, match="has no column 'score'"):
        read_report(folder)
    pq.write_table(pa.table({"task": ["a"], "score": ["high"], "chosen": [True]}), path)
    with pytest.raises(DataError, match=r"a column of .*step-10\.parquet has another type"):
        read_report(folder)


def test_whatever_a_selector_reports_can_be_shown(tmp_path):
    report = {
        "seconds": "soon",
        "left_out": [1, 2],
        "x": {"y": [{"z": 1}], "nothing": None, "yes": True},
        "n": [1.5, 2],
        "ids": [],
    }
    selection = Selection(np.arange(2), np.full(4, np.nan), "x", 1, 1, report)
    write_selection(tmp_path / "selections" / "step-1.parquet", selection, tiny_dataset(4), "task")
    (tmp_path / "selections" / "step-²old.parquet").write_bytes(b"")
    write_json(tmp_path / "all_results.json", {"seconds": {"a": "b"}, "data": [1], "eval_loss": None})
    print_report(tmp_path)
    facts = {name: row["value"] for name, row in sheet(tmp_path, "what the selector says").items()}
    assert facts == {"x.y": "1 entries", "x.nothing": "-", "x.yes": "yes", "n": "1.5, 2", "ids": "none"}


HOSTILE = ["[/]", "[red]x[/red]", ":smile:", "\x1b[2J", "\x9b31m", "\u202egpj", "a\nb", "<b>&", "x" * 500]


def test_names_of_any_kind_are_text_in_the_tables_and_on_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    examples = [
        replace(example, sample=replace(example.sample, id=name, metadata={"task": name}))
        for example, name in zip(tiny_dataset(9), HOSTILE, strict=True)
    ]
    report = {"seconds": {"[/red]\x1b[2J": 1.0}, "left_out": {"[/]": 1}, "[/x]": "[/y]"}
    selection = Selection(np.arange(4), None, "[/link]", 1, 1, report)
    folder = tmp_path / "[bold]run"
    write_selection(folder / "selections" / "step-1.parquet", selection, TokenizedDataset(examples), "task")
    write_json(folder / "all_results.json", {"seconds": {"selection": 2.0}, "\x1b[2J": "[/red]\x1b[2J"})
    print_report(folder)
    printed, html = capsys.readouterr().out, (folder / "report.html").read_text(encoding="utf-8")
    assert not {"\x1b", "\x9b", "\u202e"} & set(printed + html)
    for name in ("[/]", "[red]x[/red]", ":smile:", r"\x1b[2J", r"\x9b31m", r"\u202egpj", r"a\nb", "<b>&"):
        assert name in printed
        assert html_module.escape(name) in html
    assert "[/link]: 1 selection" in printed
    assert "[bold]run" in printed


def test_the_selection_file_names_rows_and_ranks(tmp_path):
    dataset = tiny_dataset(4)
    write_selection(tmp_path / "s.parquet", Selection(np.array([3, 0]), np.arange(4.0), "x", 5, 2), dataset, "task")
    table = pq.read_table(tmp_path / "s.parquet")
    facts = json.loads(table.schema.metadata[b"dataflex"])
    del facts["excerpts"]
    assert facts == {"selector": "x", "step": 5, "round": 2, "report": {}}
    columns = table.to_pydict()
    assert columns["rank"] == [1, None, None, 0]
    assert columns["chosen"] == [True, False, False, True]
    assert columns["id"] == [sample.id for sample in dataset.samples]
    assert columns["score"] == [0.0, 1.0, 2.0, 3.0]
    assert columns["tokens"] == dataset.lengths
    assert columns["source"] == [None] * 4
