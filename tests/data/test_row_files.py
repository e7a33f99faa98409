"""Rows that are read alone are those of the whole file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataflex.data import row_files
from dataflex.data.readers import arrow_rows, read_rows
from dataflex.data.row_files import ArrowRows, JoinedRows, ListedRows, SourceRows, file_rows
from dataflex.data.sources import open_samples
from dataflex.errors import DataError

ROWS = [{"prompt": f"q{i} \u00e9\u2028", "completion": f"a{i}", "n": [i]} for i in range(23)]


def digest(rows: SourceRows) -> str:
    found = hashlib.sha256()
    rows.digest(found)
    return found.hexdigest()


def every_row(path: Path) -> list[Any]:
    rows = file_rows(path)
    return [*rows.take(range(len(rows)))]


def outcome(read: Callable[[], list[Any]]) -> list[Any] | str:
    try:
        return read()
    except DataError as error:
        return str(error)


def lines(folder: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    """With all that may stand between lines."""
    path = folder / "rows.jsonl"
    text = "\n\u00a0\n \t\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n\n\x1c\n")
    return path


def parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=5)
    return folder / "rows.parquet"


def whole_json(folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(ROWS))
    return folder / "rows.json"


@pytest.mark.parametrize("write", [lines, parquet, whole_json])
def test_rows_of_a_file_in_any_order(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    found = file_rows(path)
    assert len(found) == len(ROWS)
    for numbers in ([*range(23)], [22, 0, 0, 7, 8, 9, 3], [], [4, 5]):
        assert found.take(numbers) == [read_rows(path)[number] for number in numbers]
    texts = [found.text(number) for number in (3, 0)]
    assert texts == (
        [json.dumps(ROWS[i], ensure_ascii=False) for i in (3, 0)] if path.suffix == ".jsonl" else [None] * 2
    )


@given(text=st.text("\n\r\t \u00a0\u2028\x1c\x85{}", max_size=30))
@example("{}\r\x85")  # a carriage return alone ends no line
def test_lines_are_those_that_the_reader_of_whole_files_sees(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(text.encode())
    assert outcome(lambda: every_row(path)) == outcome(lambda: read_rows(path))


def test_every_broken_line_is_reported_whichever_row_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n[1]\n{"a": \n', encoding="utf-8")
    assert file_rows(path).take([0]) == [{"a": 1}]
    with pytest.raises(DataError, match=r"a\.jsonl:2: a JSON list, expected an object\n.*:3: not valid JSON"):
        file_rows(path).take([2])
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(DataError, match=r"cannot read .*not UTF-8 text: byte 0xff at position 16"):
        file_rows(path).take([1])


def test_rows_of_a_folder_and_of_a_table(tmp_path: Path) -> None:
    for name, part in (("a", ROWS[:9]), ("b", ROWS[9:])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    folder = file_rows(tmp_path)
    assert isinstance(folder, JoinedRows)
    assert folder.take([12, 8, 9, 0]) == [ROWS[i] for i in (12, 8, 9, 0)]
    assert folder.text(9) == json.dumps(ROWS[9])
    table = ArrowRows(datasets.Dataset.from_list(ROWS).select(range(5, 20)))
    assert table.take([3, 0]) == arrow_rows([ROWS[8], ROWS[5]])


def test_digests_tell_rows_apart(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    other = datasets.Dataset.from_list([*ROWS[:-1], ROWS[0]])
    chunks = datasets.concatenate_datasets([table.select(range(7)), table.select(range(7, 23))])
    kinds = [
        (file_rows(lines(tmp_path)), file_rows(lines(tmp_path))),
        (ListedRows(ROWS), ListedRows([dict(row) for row in ROWS])),
        (
            ArrowRows(table),
            ArrowRows(chunks),
        ),
    ]
    for one, same in kinds:
        assert digest(one) == digest(same)
    different = [
        *(digest(found) for found, _ in kinds),
        digest(file_rows(whole_json(tmp_path))),
        digest(ListedRows(ROWS[::-1])),
        digest(ArrowRows(other)),
        digest(ArrowRows(table.select(range(22)))),
    ]
    lines(tmp_path, ROWS[::-1])
    assert len({*different, digest(file_rows(tmp_path / "rows.jsonl"))}) == 8
    with pytest.raises(DataError, match="a value of the type object has no bytes"):
        digest(ListedRows([{"a": [object()]}]))


def test_only_the_rows_that_are_wanted_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    one_line = row_files.json_line
    monkeypatch.setattr(row_files, "json_line", lambda line: parsed.append(line) or one_line(line))
    reader = open_samples(lines(tmp_path), dataset_dir=tmp_path)
    assert [sample.reference for sample in reader.take_rows([20, 4])] == ["a20", "a4"]
    assert [sample.reference for sample in reader.take([4, 20])] == ["a4", "a20"]
    assert [row.value for row in reader.originals([20, 4])] == [ROWS[20], ROWS[4]]
    assert len(parsed) == 1 + 2 + 2 + 2  # the first row tells the form
    assert reader[-1].reference == "a22"
    assert [sample.row for sample in reader[3:9:2]] == [3, 5, 7]
    with pytest.raises(DataError, match="there is no row 23: the data has 23 rows"):
        reader.take_rows([23])
