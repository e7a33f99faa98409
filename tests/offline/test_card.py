from __future__ import annotations

from pathlib import Path

import numpy as np

from dataflex.data.dataset import Example, TokenizedDataset
from dataflex.offline.card import subset_card
from dataflex.offline.selection import OfflineSelection, RowSource
from dataflex.testing import tiny_samples


def test_the_card_shows_names_facts_and_reports_as_text() -> None:
    samples = [
        type(sample)(sample.id, sample.row, sample.messages, metadata={"task": name})
        for sample, name in zip(tiny_samples(3), ["[x](http://e)", "a|b\nc", "\x1b[2J"], strict=True)
    ]
    candidates = TokenizedDataset(Example(sample, [1, 2], [-100, 2]) for sample in samples)
    facts, source = {"judge": "\u202e````"}, RowSource(Path("rows.jsonl"))
    selection = OfflineSelection(np.arange(2), None, "mine", 0, 1, facts, candidates=candidates, source=source)
    card = subset_card("*s*.jsonl", selection, candidates, {"model": "<b>\x9b"}, "dataset: '\x1b'", "task")
    assert not {"\x1b", "\x9b", "\u202e"} & set(card)
    assert "# \\*s\\*.jsonl" in card
    assert r"| \[x\](http\://e) | 1 | 1 | 50.0% |" in card
    assert r"| a\|b\\nc | 1 | 1 | 50.0% |" in card
    assert r"| model | \<b\>\\x9b |" in card
    assert "`````json" in card


def test_a_subset_without_tasks_is_described_by_source_and_length() -> None:
    samples = [
        type(sample)(sample.id, sample.row, sample.messages, source=source)
        for sample, source in zip(tiny_samples(4), ["a.jsonl", "a.jsonl", "b.jsonl", "b.jsonl"], strict=True)
    ]
    candidates = TokenizedDataset(
        Example(sample, [1] * length, [-100] + [1] * (length - 1))
        for sample, length in zip(samples, [10, 40, 100, 60], strict=True)
    )
    source, scores = RowSource(Path("rows.jsonl")), np.arange(4.0)
    selection = OfflineSelection(np.array([0, 1, 3]), scores, "mine", 0, 1, candidates=candidates, source=source)
    card = subset_card("s.jsonl", selection, candidates, {}, "", "task")
    assert "| task |" not in card
    for line in ("| a.jsonl | 2 | 2 | 66.7% |", "| b.jsonl | 2 | 1 | 33.3% |", "| 33-64 | 2 | 2 | 66.7% |"):
        assert line in card
