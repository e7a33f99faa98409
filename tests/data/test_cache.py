"""Tokenised data that are kept: the same as those made at once, made once, and never half read."""

from __future__ import annotations

import datetime
import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflex.data import cache, prepare
from dataflex.data.cache import CacheSettings, cache_name, default_folder
from dataflex.data.dataset import TokenizedDataset, kept_dataset, tokenize
from dataflex.data.prepare import tokenised_rows
from dataflex.data.row_store import RowWriter
from dataflex.data.sources import load_samples, open_samples
from dataflex.data.templates import ChatTemplate
from dataflex.errors import DataError
from dataflex.testing import tiny_tokenizer

COUNT = 600
ROWS: list[dict[str, Any]] = [
    {
        "id": f"id{i % 500}",  # some ids occur twice
        "prompt": f"apple {i} " * (i % 7 + 1),
        "completion": "" if i % 50 == 3 else f"b{i} \u00e9",
        "task": f"t{i % 3}",
    }
    for i in range(COUNT)
]
ROWS[7] = {"prompt": "<|im_end|> ", "completion": "{{name}}", "task": None, "id": "x"}


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.load("chatml", tiny_tokenizer())


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    default_folder.cache_clear()
    yield
    default_folder.cache_clear()


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def cached(spec: Any, template: ChatTemplate, folder: Path, cutoff_len: int = 24, **options: Any) -> TokenizedDataset:
    rows = tokenised_rows(open_samples(spec), template, cutoff_len, CacheSettings(folder, **options))
    return kept_dataset(rows, keep_unlabelled=False, name="data")


def same(found: TokenizedDataset, plain: TokenizedDataset) -> None:
    """All that a dataset offers."""
    assert list(found) == list(plain)
    assert list(plain) == list(found)
    assert (found.report, found.fingerprint) == (plain.report, plain.fingerprint)
    assert (found.lengths, found.label_counts.tolist()) == (plain.lengths, plain.label_counts.tolist())
    assert found.samples == plain.samples
    assert [sample.source for sample in found.samples] == [sample.source for sample in plain.samples] == found.sources()
    assert (found.ids(), found.row_numbers()) == (plain.ids(), plain.row_numbers())
    assert found.groups("task") == plain.groups("task")
    assert found.id_bounds == plain.id_bounds
    assert found.to_pandas().equals(plain.to_pandas())
    assert repr(found) == repr(plain)
    places = [5, 0, 5, -1]
    assert list(found.select(places)) == list(plain.select(places))
    assert found.select(places).fingerprint == plain.select(places).fingerprint
    assert found[3:9:2].report == plain[3:9:2].report
    assert replace(found[2], labels=[1]) == replace(plain[2], labels=[1])


def table(folder: Path) -> Path:
    """Values that JSON does not have."""
    dates = {
        "day": datetime.date(2026, 1, 2),
        "at": datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
        "price": Decimal("1.50"),
    }
    rows = [row | dates | {"raw": b"\xff", "share": float("nan")} for row in ROWS]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=100)
    return folder / "rows.parquet"


SPECS: dict[str, Callable[[Path], Any]] = {
    "lines": lambda folder: write(folder / "rows.jsonl"),
    "table": table,
    "list": lambda _: ROWS,
    "dataset": lambda _: datasets.Dataset.from_list(ROWS),
    "two": lambda folder: [str(write(folder / "a.jsonl", ROWS[:300])), str(write(folder / "b.jsonl", ROWS[300:]))],
}


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize("kind", SPECS)
def test_kept_data_are_those_made_at_once(
    kind: str, workers: int | None, template: ChatTemplate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SPECS[kind](tmp_path)
    plain = tokenize(load_samples(spec), template, 24, progress=False)
    if kind != "table":  # NaN differs from itself
        same(cached(spec, template, tmp_path / "c", workers=workers), plain)
    made = cached(spec, template, tmp_path / "c", workers=workers)
    assert repr(list(made.samples)) == repr(list(plain.samples))
    assert made.fingerprint == plain.fingerprint
    monkeypatch.setattr(ChatTemplate, "encode_batch", None)  # now nothing can be tokenised
    again = cached(spec, template, tmp_path / "c")
    assert again.fingerprint == plain.fingerprint
    assert repr(list(again.samples)) == repr(list(plain.samples))
    assert again.report == plain.report
    assert plain.report.dropped == 0
    assert plain.report.truncated > 0
    assert len(plain.report.notes) == 3


def test_rows_without_a_label_are_dropped_by_those_who_read(template: ChatTemplate, tmp_path: Path) -> None:
    rows = [*ROWS[:20], {"messages": [{"role": "user", "content": "a"}]}, *ROWS[20:40]]
    plain = tokenize(load_samples(rows), template, 24, progress=False)
    same(cached(rows, template, tmp_path), plain)
    assert plain.report.dropped == 1
    found = tokenised_rows(open_samples(rows), template, 24, CacheSettings(tmp_path))
    kept = kept_dataset(found, keep_unlabelled=True, name="data")
    same(kept, tokenize(load_samples(rows), template, 24, progress=False, keep_unlabelled=True))
    with pytest.raises(DataError, match="no conversation has an assistant turn"):
        cached([rows[20]], template, tmp_path)


def test_the_name_says_what_is_in_it(template: ChatTemplate, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl")

    def name(spec: Any = path, with_: ChatTemplate = template, cutoff_len: int = 24, **options: Any) -> str | None:
        return cache_name(open_samples(spec, **options), with_, cutoff_len)

    other = tiny_tokenizer(extra_tokens=("<x>",))
    dated = tiny_tokenizer(chat_template=str(template.source) + "{# {{ strftime_now('%Y-%m') }} #}")
    days = [ChatTemplate.load(None, dated, now=datetime.datetime(2026, month, 1)) for month in (1, 2)]
    names = [
        name(),
        name(cutoff_len=25),
        name(max_samples=500),
        name(with_=ChatTemplate.load("alpaca", tiny_tokenizer())),
        name(with_=ChatTemplate.load("chatml", other)),
        *(name(with_=day) for day in days),
        name(ROWS),
    ]
    assert len({*names}) == len(names)
    assert name() == name(with_=ChatTemplate.load("chatml", tiny_tokenizer())) == names[0]
    assert name(with_=ChatTemplate.load(None, dated, now=datetime.datetime(2026, 1, 31))) == names[5]
    tokenizer = tiny_tokenizer()
    tokenizer("a", truncation=True, max_length=4, padding="max_length")  # leaves its mark on the tokenizer
    assert name(with_=ChatTemplate.load("chatml", tokenizer)) == names[0]
    write(path, [*ROWS[:-1], ROWS[0]])
    assert name() not in names


def test_what_is_killed_while_it_writes_leaves_nothing_to_read(template: ChatTemplate, tmp_path: Path) -> None:
    """The process ends without a word after the second of three parts."""
    child = os.fork()
    if not child:
        add, parts = RowWriter.add, []

        def dying(self: RowWriter, part: Any) -> None:
            parts.append(part)
            if len(parts) == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            add(self, part)

        RowWriter.add = dying  # type: ignore[method-assign]
        cached(ROWS, template, tmp_path)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not [path for path in (tmp_path / "tokenized").iterdir() if not path.name.endswith((".tmp", ".lock"))]
    same(cached(ROWS, template, tmp_path), tokenize(load_samples(ROWS), template, 24, progress=False))


@pytest.mark.parametrize("file", ["input_ids.npy", "turns.npy", "rows.json", "offsets.npy"])
def test_damage_is_noticed_and_mended(
    file: str, template: ChatTemplate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cached(ROWS, template, tmp_path)
    (entry,) = (path for path in (tmp_path / "tokenized").iterdir() if path.is_dir())
    content = (entry / file).read_bytes()
    (entry / file).write_bytes(content[: len(content) // 2])
    again = cached(ROWS, template, tmp_path)
    assert "is damaged" in caplog.text
    assert (entry / file).read_bytes() == content
    same(again, tokenize(load_samples(ROWS), template, 24, progress=False))


def test_of_several_processes_one_tokenises(template: ChatTemplate, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def work() -> None:
        encode = ChatTemplate.encode_batch

        def noted(self: ChatTemplate, *args: Any) -> Any:
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
            return encode(self, *args)

        ChatTemplate.encode_batch = noted  # type: ignore[method-assign]
        cached(ROWS, template, tmp_path / "c")

    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            try:
                work()
            finally:
                os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert len(set(log.read_text().split())) == 1
    assert len([*(tmp_path / "c" / "tokenized").iterdir()]) == 1  # no lock, nothing temporary


def test_overwriting_makes_them_again_on_one_process(
    template: ChatTemplate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    write_entry = prepare._write
    monkeypatch.setattr(prepare, "_write", lambda entry, *rest: made.append(entry) or write_entry(entry, *rest))
    before = cached(ROWS, template, tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    cached(ROWS, template, tmp_path, overwrite=True)
    assert len(made) == 1
    monkeypatch.setenv("LOCAL_RANK", "0")
    same(cached(ROWS, template, tmp_path, overwrite=True), before)  # which still reads what it had opened
    assert len(made) == 2


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, {"a": [object]}, {1, 2}])
def test_values_that_would_change_stay_in_memory(
    value: Any, template: ChatTemplate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*ROWS, ROWS[0] | {"extra": value}]
    caplog.set_level(logging.INFO)
    found = cached(rows, template, tmp_path)
    assert found[COUNT].sample.metadata["extra"] == value
    assert "tokenised data are not kept" in caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_small_data_are_not_kept_where_nobody_named_a_folder(
    template: ChatTemplate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATAFLEX_CACHE", str(tmp_path / "c"))
    tokenised_rows(open_samples(ROWS), template, 24)
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr(prepare, "SMALL", COUNT)
    tokenised_rows(open_samples(ROWS), template, 24)
    assert len([*(tmp_path / "c" / "tokenized").iterdir()]) == 1


def test_without_a_home_that_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("DATAFLEX_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a folder below it cannot be made, not even by root
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    caplog.set_level(logging.INFO)
    assert default_folder() == tmp_path / f"dataflex-{os.getuid()}"
    assert "cannot be written to" in caplog.text
    default_folder.cache_clear()
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    assert default_folder() is None
    default_folder.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert default_folder() == tmp_path / "own" / "dataflex"


@pytest.mark.parametrize("workers", [None, 2])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "a"}, "2 of 600 rows cannot be read as prompt_completion"),
        ({"prompt": 5, "completion": "b"}, "2 of 600 rows cannot be read as prompt_completion"),
        ({"prompt": "a", "completion": "b", "images": ["x"]}, "2 of 600 rows have images"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": []}] * 0}, "cannot be read"),
    ],
)
def test_all_bad_rows_are_counted_whoever_reads_them(
    bad: dict[str, Any], message: str, workers: int | None, template: ChatTemplate, tmp_path: Path
) -> None:
    rows = [dict(row) for row in ROWS]
    rows[10], rows[590] = bad, bad
    with pytest.raises(DataError) as plain:
        load_samples(rows)
    with pytest.raises(DataError) as found:
        cached(rows, template, tmp_path, workers=workers)
    assert str(found.value) == str(plain.value)
    assert message in str(found.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("workers", [None, 2])
def test_all_refused_rows_are_counted_whoever_renders_them(workers: int | None, tmp_path: Path) -> None:
    strict = "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('never') }}{% endif %}" + (
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = ChatTemplate.load(None, tiny_tokenizer(chat_template=strict))
    rows = [*ROWS[:10], {"prompt": "no", "completion": "b"}, *ROWS[10:590], {"prompt": "no", "completion": "b"}]
    with pytest.raises(DataError) as plain:
        tokenize(load_samples(rows), template, 24, progress=False)
    with pytest.raises(DataError) as found:
        cached(rows, template, tmp_path, workers=workers)
    assert str(found.value) == str(plain.value)
    assert "2 of 592 samples cannot be rendered" in str(found.value)


def test_a_killed_process_is_said(template: ChatTemplate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()

    def killed(*_: Any) -> None:
        assert os.getpid() != parent
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ChatTemplate, "encode_batch", killed)
    with pytest.raises(DataError, match="a process that tokenises was killed") as caught:
        cached(ROWS, template, tmp_path, workers=2)
    assert caught.value.hint == "lower preprocessing_num_workers"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
