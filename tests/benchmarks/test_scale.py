"""The benchmark of data by their size, on a few rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import scale
from measuring.phases import DIM, PHASES, Cost


def test_what_is_measured_of_a_size(tmp_path: Path) -> None:
    scale.write_rows(tmp_path / "rows.jsonl", 40)
    first = scale.start(tmp_path / "rows.jsonl", tmp_path / "c", None, None)
    again = scale.start(tmp_path / "rows.jsonl", tmp_path / "c", None, None)
    assert (first.rows, again.rows) == (40, 40)
    assert first.tokens == again.tokens > 40 * scale.WORDS
    assert len([*(tmp_path / "c" / "tokenized").iterdir()]) == 1
    other = scale.mapped(tmp_path / "rows.jsonl", tmp_path / "m", None)
    assert (other.rows, other.tokens) == (40, first.tokens)


def test_phases_of_rows_are_measured(tmp_path: Path) -> None:
    small, large = tmp_path / "30", tmp_path / "60"
    for folder in (small, large):
        folder.mkdir()
        scale.write_rows(folder / "rows.jsonl", int(folder.name))
    before, found = scale.phases([small, large], None, 1)
    assert before.keys() == found.keys() == PHASES.keys()
    assert min(cost.cpu for cost in found.values()) > 0
    kept = next(name for name in PHASES if name.startswith("features"))
    assert found[kept].files - before[kept].files == pytest.approx(30 * 4 * DIM, rel=0.5)
    assert sorted(path.name for path in large.iterdir()) == ["cache", "rows.jsonl"]


def test_least_of_each_kind_counts() -> None:
    assert scale.least([Cost(1.0, 50, 7), Cost(2.0, 40, 7)]) == Cost(1.0, 40, 7)


def test_goals_are_judged_at_the_largest_size() -> None:
    good = scale.Start(100.0, 50.0, 1000, 2000, 234_000, 1000)
    ranks = (replace(good, wall=1.0, cpu=0.01), replace(good, wall=1.0, cpu=0.02, private=90_000))
    look = {"look": Cost(1.0, 100, 0), "keep": Cost(1.0, 100, 100)}
    small = scale.Scale(
        1000, good, [], ranks, (replace(good, cpu=40.0), replace(good, cpu=60.0)), 1_000_000, 900_000, look
    )
    large = replace(
        small,
        rows=10_000,
        alone=None,
        first=replace(good, cpu=500.0, tokens=2_340_000),
        beside=[replace(good, cpu=40.0), replace(good, cpu=45.0), replace(good, cpu=90.0)],
        ranks=(replace(ranks[0], private=91_000), replace(ranks[1], private=180_000)),
        phases={"look": Cost(11.0, 1000, 0), "keep": Cost(9.0, 1010, 1100)},
        token_bytes=9_000_000,
    )
    found = {name: (value, met) for name, value, _, met in scale.outcomes([small, large])}
    assert found["first start alone, CPU s a 1,000 rows, 1,000 rows"] == (40.0, False)
    assert found["first start over datasets.map, CPU, 1,000 rows"] == (pytest.approx(40 / 60), True)
    assert found["second start, CPU s a 1,000 rows"] == (pytest.approx(0.002), True)
    assert found["second start over the first, wall"] == (pytest.approx(0.01), True)
    assert found["bytes of tokens a row of 234"] == (pytest.approx(900), True)
    assert found["private bytes a row, each of two ranks"] == (10.0, True)
    line = "a row's cost, largest size over the one before: "
    assert found[f"{line}first start, CPU"] == (pytest.approx(500 / 450), False)  # beside the small ones' median
    assert found[f"{line}look, CPU"] == (pytest.approx(1.1), False)
    assert found[f"{line}look, peak memory"] == (pytest.approx(1.0), True)
    assert found[f"{line}keep, files"] == (pytest.approx(1.1), False)
    assert f"{line}look, files" not in found
    assert "| look | 1,000.0, 0, 0 | 1,100.0, 0, 0 |" in scale.table([small, large])
