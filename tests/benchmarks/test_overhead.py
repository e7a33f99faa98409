"""The benchmark of what a curriculum adds to another trainer's steps finds what is added."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from dataflex.integrations.rows import RowStream
from dataflex.testing import tiny_model, tiny_tokenizer
from helpers.scripts import load_script

overhead = load_script("benchmarks/overhead.py")

SECONDS = 0.004


def spin() -> None:
    """Keep the processor busy."""
    end = time.process_time() + SECONDS
    while time.process_time() < end:
        pass


class Spinning(TrainerCallback):
    def on_step_end(self, *arguments: Any, **named: Any) -> None:
        spin()


def test_what_is_added_to_a_step_is_found_where_it_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    sizes = ["--rows", "16", "--tokens", "8", "--steps", "6", "--update-step", "3", "--rounds", "2", "--rank", "4"]
    options = overhead.parse(["--model", str(tmp_path), *sizes])
    setting = overhead.Setting(options)
    read = RowStream.rows

    def slowly(stream: RowStream) -> Iterator[dict[str, Any]]:
        for row in read(stream):
            spin()
            yield row

    monkeypatch.setattr(RowStream, "rows", slowly)
    rounds = overhead.measure(setting, Spinning())
    assert len(rounds) == 2
    for each in rounds:
        assert each.calls >= SECONDS
        assert each.added_reading >= SECONDS  # two rows a step
        assert each.boundary > 0
        assert each.beginning >= 16 * SECONDS
        assert each.share > overhead.MOST
    assert "goal: below 1%, not met" in overhead.table(rounds, options)
