from __future__ import annotations

import pytest

from dataflex.data import ChatTemplate
from dataflex.doctor.look import Look, look, spread
from dataflex.testing import tiny_samples, tiny_tokenizer
from dataflex.types import Sample


def unanswered(row: int) -> Sample:
    return Sample(id=f"open-{row}", row=row, messages=({"role": "user", "content": "What?"},))


def seen(samples: list[Sample], cutoff_len: int = 128, rows: int = 1000) -> Look:
    return look(samples, ChatTemplate.load("chatml", tiny_tokenizer()), cutoff_len, rows)


def test_counts_are_those_of_the_rows() -> None:
    samples = [*tiny_samples(5), unanswered(5)]
    found = seen(samples)
    assert (found.total, len(found.samples), found.truncated, found.unlabelled) == (6, 6, [], [5])
    lines = found.lines()
    assert lines[0] == "6 rows, all looked at"
    assert lines[1].startswith(f"tokens a row: {min(found.lengths)} to {max(found.lengths)}, median ")
    assert lines[2] == "cut to 128 tokens (cutoff_len): 0"
    assert lines[3] == "without a token to learn, left out of training: 1 (ids open-5)"


def test_cut_rows_are_counted_and_the_first_named() -> None:
    found = seen(tiny_samples(8), cutoff_len=8)
    assert found.truncated == list(range(8))
    assert found.lines()[2] == "cut to 8 tokens (cutoff_len): 8 (ids 0, 1, 2, 3, 4, ...)"
    assert max(found.lengths) == 8


def test_what_stands_out_is_counted() -> None:
    empty = Sample("e", 0, ({"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}))
    found = seen([empty, *tiny_samples(2)])
    assert found.lines() == [*found.counts(), *found.warnings()]
    (line,) = found.warnings()
    assert line.startswith("1 of 3 rows have an empty answer")


def test_a_part_is_spread_over_all_rows() -> None:
    found = seen(tiny_samples(30), rows=4)
    assert [sample.row for sample in found.samples] == [0, 10, 19, 29]
    assert found.lines()[0] == "30 rows, 4 of them looked at"


@pytest.mark.parametrize(("total", "count", "places"), [(1, 3, [0]), (3, 3, [0, 1, 2]), (10, 1, [0]), (5, 0, [])])
def test_spread(total: int, count: int, places: list[int]) -> None:
    assert spread(total, count) == places
