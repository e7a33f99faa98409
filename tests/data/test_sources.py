"""Names, files, registries, hub ids and Python objects become rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflex.data.sources import load_samples, original_rows
from dataflex.errors import DataError

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(4)]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_registry(folder: Path, **entries: Any) -> Path:
    (folder / "dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def references(spec: Any, **options: Any) -> list[str | None]:
    return [sample.reference for sample in load_samples(spec, **options)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tmp_path


def test_json_jsonl_and_parquet_give_the_same(tmp_path: Path) -> None:
    jsonl = write_jsonl(tmp_path / "a.jsonl", ROWS)
    as_json = tmp_path / "a.json"
    as_json.write_text(json.dumps(ROWS))
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    assert load_samples(jsonl) == load_samples(as_json) == load_samples(str(parquet)) == load_samples(ROWS)
    assert references(jsonl) == ["a0", "a1", "a2", "a3"]


def test_mixed_types_in_json(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**ROWS[0], "extra": 1}, {**ROWS[1], "extra": {"deep": ["x"]}}])
    assert [sample.metadata["extra"] for sample in load_samples(path)] == [1, {"deep": ["x"]}]


def test_line_separators_inside_strings_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a\u2028b", "completion": "c"}\r\n\n', encoding="utf-8")
    assert load_samples(path)[0].messages[0]["content"] == "a\u2028b"


DEEP, DIGITS = "[" * 100_000, "1" * 5000
"""JSON that Python does not read: lists too deep, a number too long."""


def test_broken_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n[1]\n')
    with pytest.raises(DataError) as caught:
        load_samples(path)
    lines = caught.value.message.splitlines()
    assert lines[0].startswith(f"{path}:2: not valid JSON")
    assert lines[1] == f"{path}:3: a JSON list, expected an object"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"a": 1}', "holds a JSON object, expected a list of objects"),
        ("a.json", "[1]", "row 0 is a JSON number"),
        ("a.json", "[", r"a\.json:1: not valid JSON"),
        ("a.json", "[]", "there are no rows"),
        ("a.jsonl", "\n", "there are no rows"),
        ("a.parquet", "text", "not a readable Parquet file"),
        ("a.json", DEEP, r"cannot read .*a\.json: values in it are nested too deeply"),
        ("a.jsonl", f'{{}}\n{{"x": {DEEP}', r"a\.jsonl:2: values in it are nested too deeply"),
        ("a.json", f"[{DIGITS}]", r"cannot read .*a\.json: Exceeds the limit"),
        ("a.jsonl", f'{{"x": {DIGITS}}}', r"a\.jsonl:1: Exceeds the limit"),
        ("a.txt", "text", r"cannot read a '\.txt' file, expected \.json, \.jsonl, \.parquet"),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_samples(tmp_path / name)


def test_json_lines_in_a_json_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    with pytest.raises(DataError, match="not valid JSON") as caught:
        load_samples(path)
    assert "give it the suffix .jsonl" in str(caught.value.hint)


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe[")
    with pytest.raises(DataError, match="not UTF-8"):
        load_samples(tmp_path / "a.json")


def test_a_folder_of_files(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl", ROWS[2:])
    write_jsonl(tmp_path / "a.jsonl", ROWS[:2])
    assert references(tmp_path) == ["a0", "a1", "a2", "a3"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.json, \.jsonl, \.parquet file in this folder"):
        load_samples(tmp_path / "empty")


def test_a_folder_of_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = {"train-00000": 0, "train-00001": 1, "my_test": 2, "validation": 3}
    for name, number in names.items():
        write_jsonl(tmp_path / f"{name}.jsonl", [ROWS[number]])
    assert references(tmp_path) == ["a0", "a1"]
    assert caplog.messages == [f"{tmp_path}: read is the split train; left out: my_test.jsonl, validation.jsonl"]
    assert references(tmp_path, split="test") == ["a2"]
    assert [row.text for row in original_rows(tmp_path, [1, 0])] == [json.dumps(ROWS[1]), json.dumps(ROWS[0])]
    write_jsonl(tmp_path / "more.jsonl", [ROWS[3]])
    with pytest.raises(DataError, match=r"(?s)several splits, and it is not clear .* 'train'.*more.jsonl: of no split"):
        load_samples(tmp_path)


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (("test", "validation"), None),  # no file of the split that is asked for
        (("test-0", "test-1"), ["a0", "a1"]),  # one split, or none, is no mixture
        (("pretraining", "contest"), ["a1", "a0"]),
        (("train_test", "train"), None),
    ],
)
def test_a_folder_without_a_clear_training_split(
    tmp_path: Path, names: tuple[str, ...], read: list[str] | None
) -> None:
    for number, name in enumerate(names):
        write_jsonl(tmp_path / f"{name}.jsonl", [ROWS[number]])
    if read is None:
        with pytest.raises(DataError, match="of several splits") as caught:
            load_samples(tmp_path)
        assert "name the files" in str(caught.value.hint)
    else:
        assert references(tmp_path) == read


def test_working_directory_goes_before_base_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "base"):
        (tmp_path / name).mkdir()
    write_jsonl(tmp_path / "base" / "a.jsonl", ROWS[:1])
    monkeypatch.chdir(tmp_path / "here")
    assert references("a.jsonl", base_dirs=[tmp_path / "base"]) == ["a0"]
    write_jsonl(tmp_path / "here" / "a.jsonl", ROWS[1:2])
    assert references("a.jsonl", base_dirs=[tmp_path / "base"]) == ["a1"]


def test_a_missing_name_says_where_it_was_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    write_registry(folder, my_rows={"file_name": "rows.jsonl"})
    with pytest.raises(DataError) as caught:
        load_samples("my_row", dataset_dir=folder, base_dirs=[folder / "base"])
    for place in (folder / "here" / "my_row", folder / "base" / "my_row", folder / "dataset_info.json"):
        assert str(place) in caught.value.message
    assert caught.value.hint == "did you mean 'my_rows'?"


def test_names_concatenate(folder: Path) -> None:
    write_jsonl(folder / "ids.jsonl", [{"id": "1", **ROWS[0]}, {"id": "x", **ROWS[1]}])
    write_registry(folder, first={"file_name": "rows.jsonl"}, second={"file_name": "ids.jsonl"})
    samples = load_samples("first, second", dataset_dir=folder)
    assert [sample.row for sample in samples] == [0, 1, 2, 3, 4, 5]
    assert [sample.id for sample in samples] == ["0", "1", "2", "3", "1#2", "x"]
    assert samples == load_samples(["first", "second"], dataset_dir=folder)


def test_max_samples_counts_per_source_and_keeps_row_numbers(folder: Path) -> None:
    write_registry(folder, first={"file_name": "rows.jsonl"}, second={"file_name": "rows.jsonl"})
    samples = load_samples("first,second", dataset_dir=folder, max_samples=2)
    assert [sample.row for sample in samples] == [0, 1, 4, 5]
    with pytest.raises(DataError, match="max_samples is 0"):
        load_samples("first", dataset_dir=folder, max_samples=0)


def test_bad_rows_of_a_later_source_have_its_own_row_numbers(folder: Path) -> None:
    bad = write_jsonl(folder / "bad.jsonl", [ROWS[0], {"prompt": "a"}])
    with pytest.raises(DataError, match=r"bad\.jsonl: 1 of 2 rows .*\n  row 1: 'completion' is missing"):
        load_samples([folder / "rows.jsonl", bad])


def test_num_samples_draws_the_same_rows_each_time(folder: Path) -> None:
    write_registry(
        folder, some={"file_name": "rows.jsonl", "num_samples": 2}, more={"file_name": "rows.jsonl", "num_samples": 9}
    )
    samples = load_samples("some", dataset_dir=folder)
    assert len(samples) == 2
    assert [sample.reference for sample in samples] == [f"a{sample.row}" for sample in samples]
    assert samples == load_samples("some", dataset_dir=folder)
    with pytest.raises(DataError, match="num_samples is 9, but there are 4 rows"):
        load_samples("more", dataset_dir=folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file_name": "rows.jsonl", "ranking": True}, "preference pairs cannot be trained on"),
        ({"file_name": "rows.jsonl", "columns": {"kto_tag": "label"}}, "KTO feedback cannot"),
        ({"file_name": "rows.jsonl", "columns": {"images": "images", "audios": "a"}}, "audio and images cannot"),
        ({"file_name": "rows.jsonl", "columns": {"prompt": "prompt"}}, "pretraining, are not supported"),
        ({"ms_hub_url": "a/b"}, "comes from ModelScope only"),
        ({"script_url": "a"}, "comes from a loading script only"),
        ({}, "names no source"),
        ({"file_name": "gone.json"}, r"gone\.json does not exist"),
        ({"file_name": "rows.jsonl", "colums": {}}, "unknown key 'colums'"),
        ({"file_name": "rows.jsonl", "columns": []}, "expected an object of names"),
        ({"file_name": 3}, "file_name is 3, expected text"),
        ({"file_name": "rows.jsonl", "num_samples": 0}, "num_samples is 0"),
        ("rows.jsonl", "expected an object"),
    ],
)
def test_registry_entries_that_cannot_be_used(folder: Path, entry: Any, message: str) -> None:
    write_registry(folder, it=entry)
    with pytest.raises(DataError, match=message) as caught:
        load_samples("it", dataset_dir=folder)
    assert "dataset_info.json" in caught.value.message or message.endswith("supported")


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), (DEEP, "nested too deeply")])
def test_broken_registry(folder: Path, text: str, message: str) -> None:
    (folder / "dataset_info.json").write_text(text)
    with pytest.raises(DataError, match=rf"dataset_info\.json: .*{message}"):
        load_samples("it", dataset_dir=folder)


def test_a_row_that_is_nested_too_deeply_is_named_among_the_others() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    fine = {"prompt": "a", "completion": "b"}
    for broken in (fine | {"x": deep}, fine | {"tools": DEEP}):
        with pytest.raises(DataError, match=r"1 of 2 rows cannot .*\n  row 1: .*nested too deeply"):
            load_samples([fine, broken])


def test_registry_formatting_columns_and_tags(folder: Path) -> None:
    write_jsonl(folder / "dialog.jsonl", [{"talk": [{"r": "u", "c": "a"}, {"r": "b", "c": "c"}], "instruction": "x"}])
    tags = {"role_tag": "r", "content_tag": "c", "user_tag": "u", "assistant_tag": "b"}
    entry = {"file_name": "dialog.jsonl", "formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": tags}
    write_registry(folder, it=entry)
    (sample,) = load_samples("it", dataset_dir=folder)
    assert [message["role"] for message in sample.messages] == ["user", "assistant"]
    assert sample.metadata == {"instruction": "x"}


def test_a_dataset_object() -> None:
    dataset = datasets.Dataset.from_list([{**row, "task": "t"} for row in ROWS])
    samples = load_samples(dataset, max_samples=2)
    assert [sample.reference for sample in samples] == ["a0", "a1"]
    assert samples[1].metadata == {"task": "t"}
    with pytest.raises(DataError, match="DatasetDict with the splits train"):
        load_samples(datasets.DatasetDict(train=dataset))


def test_a_saved_dataset(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert references(tmp_path / "saved") == ["a0", "a1", "a2", "a3"]


def test_hub_loading_from_a_local_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub = folder / "hub"
    hub.mkdir()
    write_jsonl(hub / "train.jsonl", ROWS[:2])
    write_jsonl(hub / "test.jsonl", ROWS[2:])
    write_registry(folder, all={"hf_hub_url": str(hub)}, held_out={"hf_hub_url": str(hub), "split": "test"})
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    assert references("all", dataset_dir=folder) == ["a0", "a1"]
    assert references("held_out", dataset_dir=folder) == ["a2", "a3"]


def test_offline_set_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE was set after"):
        load_samples("owner/name")


@pytest.mark.integration
def test_offline_a_hub_id_that_is_not_cached(tmp_path: Path) -> None:
    program = (
        "from dataflex.data.sources import load_samples\nfrom dataflex.errors import DataError\n"
        "try:\n    load_samples('owner/name')\nexcept DataError as error:\n    print(error)"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("hub dataset 'owner/name' cannot be loaded")
    assert "HF_HUB_OFFLINE is set: only datasets in the local cache can be loaded" in done.stdout


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "name of the dataset is empty"),
        ("a,,b", "an empty name between commas"),
        ([], "an empty list"),
        (["a", {"prompt": "b"}], "mixed things"),
        (3, "cannot be a int"),
        ("no_such_name", "was not found"),
    ],
)
def test_impossible_specs(spec: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_samples(spec)


def test_original_rows_are_those_of_their_sources_in_any_order(folder: Path) -> None:
    (folder / "other.json").write_text(json.dumps([{"prompt": f"p{i}", "completion": "c"} for i in range(3)]))
    (folder / "parts").mkdir()
    for name, rows in (("b", ROWS[2:]), ("a", ROWS[:2])):
        write_jsonl(folder / "parts" / f"{name}.jsonl", rows)
    table = datasets.Dataset.from_list(ROWS)
    names = [folder / "rows.jsonl", folder / "other.json", folder / "parts"]
    found = original_rows(names, [5, 0, 10, 7, 5])
    assert [row.value for row in found] == [
        {"prompt": "p1", "completion": "c"},
        ROWS[0],
        ROWS[3],
        ROWS[0],
        {"prompt": "p1", "completion": "c"},
    ]
    assert [row.text for row in found] == [None, json.dumps(ROWS[0]), json.dumps(ROWS[3]), json.dumps(ROWS[0]), None]
    assert [(Path(row.where).name, row.number) for row in found[:3]] == [
        ("other.json", 1),
        ("rows.jsonl", 0),
        ("parts", 3),
    ]
    for spec in (ROWS, table):
        assert [(row.value, row.text) for row in original_rows(spec, [3, 1])] == [(ROWS[3], None), (ROWS[1], None)]
    with pytest.raises(DataError, match="there is no row 4: the data has 4 rows"):
        original_rows(folder / "rows.jsonl", [4])


def test_original_rows_of_an_entry_count_all_its_rows(folder: Path) -> None:
    write_registry(folder, some={"file_name": "rows.jsonl", "num_samples": 2})
    samples = load_samples("some", dataset_dir=folder)
    assert [row.value for row in original_rows("some", [sample.row for sample in samples], dataset_dir=folder)] == [
        ROWS[sample.row] for sample in samples
    ]


def test_rows_that_need_a_mapping_become_messages(folder: Path) -> None:
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    turns = [
        {"who": "q", "text": "1+2?"},
        {"who": "c", "text": call["value"]},
        {"who": "a", "text": "3", "train": False},
    ]
    rows = [{"dialogue": turns, "id": 7, "task": "sums", "output": "o", "instruction": "i"}]
    tags = {"role_tag": "who", "content_tag": "text", "user_tag": "q", "assistant_tag": "a", "function_tag": "c"}
    columns = {"messages": "dialogue", "system": "persona"}
    write_jsonl(folder / "chats.jsonl", [*rows, rows[0] | {"persona": "You add."}])
    write_registry(
        folder,
        mapped={"file_name": "chats.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags},
        named={"file_name": "rows.jsonl", "formatting": "prompt_completion"},
    )
    sample, _ = load_samples("mapped", dataset_dir=folder)
    (row,) = original_rows("mapped", [0], dataset_dir=folder)
    (again,) = load_samples([row.value])
    assert row.text is None
    assert (again.messages, again.id, again.tools) == (sample.messages, sample.id, sample.tools)
    assert again.metadata == {"task": "sums", "output_": "o", "instruction_": "i"}
    assert original_rows("named", [1], dataset_dir=folder)[0].text == json.dumps(ROWS[1])  # readable as it is


def test_a_source_that_names_no_form_may_hold_several(folder: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    mixed = [ROWS[0], chat, {**ROWS[1], "_dataflex": {"rank": 0}}, {**chat, "id": "x"}]
    assert [sample.reference for sample in load_samples(mixed)] == ["a0", "a", "a1", "a"]
    write_registry(folder, named={"file_name": "mixed.jsonl", "formatting": "prompt_completion"})
    write_jsonl(folder / "mixed.jsonl", mixed)
    with pytest.raises(DataError, match="2 of 4 rows cannot be read as prompt_completion"):
        load_samples("named", dataset_dir=folder)
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be read as prompt_completion:\n  row 1: "):
        load_samples([ROWS[0], {"text": "plain"}])
