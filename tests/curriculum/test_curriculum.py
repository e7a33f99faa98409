"""One object says what is trained on: the same rows whoever asks, in the order of the schedule, and after a restart."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflex.curriculum.curriculum import Curriculum, Loop
from dataflex.curriculum.schedule import Phase, Schedule
from dataflex.data import ChatTemplate
from dataflex.errors import SelectionError
from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig
from dataflex.testing import tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.utils.distributed import Ranks
from helpers.runs import tiny_trainer


class Walking(Selector[SelectorConfig]):
    """Takes the candidates from the end, a window a round, and remembers how often it was asked."""

    Config = SelectorConfig
    name = "walking"

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.seen: list[SelectionContext] = []

    def check(self, context: SelectionContext) -> None:
        self.seen.append(context)

    def select(self, context: SelectionContext) -> Selection:
        self.seen.append(context)
        indices = np.arange(len(context.train_dataset), dtype=np.int64)[::-1]
        start = self.asked * context.num_samples
        self.asked += 1
        chosen = indices[start : start + context.num_samples].copy()
        return Selection(chosen, None, self.name, context.step, context.round)

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


def curriculum(output_dir: Path, selector: Selector[Any] | None = None, **changes: Any) -> Curriculum:
    settings: dict[str, Any] = {"global_batch": 4, "seed": 3, "output_dir": output_dir}
    schedule = Schedule(2, 1, 2) if selector else Schedule(5)
    return Curriculum(schedule, selector, tiny_dataset(10, seed=0), **(settings | changes))


def loop() -> Loop:
    tokenizer = tiny_tokenizer()
    template = ChatTemplate.load("chatml", tokenizer)
    return Loop(tiny_lora(tiny_model()), tokenizer, template, None, nullcontext, Ranks())


def test_rows_of_a_phase_wait_for_its_selection_and_follow_it(tmp_path: Path) -> None:
    found = curriculum(tmp_path, Walking())
    assert [found.phase(step) for step in range(4)] == [Phase(0, 2, None)] * 2 + [Phase(2, 3, 1), Phase(3, 4, 2)]
    assert not found.wants_selection(found.phases[0])
    assert len({*found.rows(0), *found.rows(1)}) == 8  # random, and none twice while there are others
    with pytest.raises(SelectionError, match="steps 2 to 2 train on selection 1, and the last one made is 0"):
        found.rows(2)
    assert found.wants_selection(found.phases[1])
    statistics = found.select(found.phases[1], loop(), 2)
    assert (statistics["selection_round"], statistics["selected"]) == (1, 4)
    assert not found.wants_selection(found.phases[1])
    assert sorted(found.rows(2)) == [6, 7, 8, 9]
    with pytest.raises(SelectionError, match="steps 3 to 3 train on selection 2, and the last one made is 1"):
        found.rows(3)
    with pytest.raises(IndexError, match="a run of 4 steps has none after step 4"):
        found.rows(4)


def test_a_selection_leaves_its_record_and_sees_the_loop(tmp_path: Path) -> None:
    selector, seen_by = Walking(), loop()
    found = curriculum(tmp_path, selector)
    found.check(seen_by)
    found.select(found.phases[1], seen_by, 2)
    assert found.select(found.phases[2], seen_by, 3)["selection_overlap"] == 0.0
    assert [(each.step, each.round, each.num_samples) for each in selector.seen] == [(0, 0, 4), (2, 1, 4), (3, 2, 4)]
    assert {(each.num_rounds, each.total_samples, each.seed) for each in selector.seen} == {(2, 8, 3)}
    assert all(each.model is seen_by.model and each.optimizer is None for each in selector.seen)
    assert sorted(path.name for path in (tmp_path / "selections").iterdir()) == ["step-2.parquet", "step-3.parquet"]
    table = pq.read_table(tmp_path / "selections" / "step-3.parquet")
    assert np.flatnonzero(table["chosen"].to_numpy()).tolist() == [2, 3, 4, 5]


def test_a_restarted_curriculum_goes_on_where_the_state_was_taken(tmp_path: Path) -> None:
    whole = curriculum(tmp_path / "whole", Walking())
    whole.select(whole.phases[1], loop(), 2)
    state = json.loads(json.dumps(whole.state_dict()))
    assert state == {"round": 1, "indices": [9, 8, 7, 6], "selector": {"asked": 1}}
    again = curriculum(tmp_path / "again", Walking())
    again.load_state_dict(state)
    assert again.rows(2) == whole.rows(2)
    for each in (whole, again):
        each.select(each.phases[2], loop(), 3)
    assert again.rows(3) == whole.rows(3)
    assert again.state_dict() == whole.state_dict()


def test_without_a_selector_there_are_only_random_rows(tmp_path: Path) -> None:
    found = curriculum(tmp_path)
    rows = [found.rows(step) for step in range(5)]
    assert sorted(row for step in rows for row in step) == sorted([*range(10)] * 2)
    assert curriculum(tmp_path, shuffle=False).rows(2) == [8, 9, 0, 1]
    assert found.state_dict() == {"round": 0, "indices": [], "selector": {}}
    found.load_state_dict(found.state_dict())
    assert found.rows(4) == rows[4]


def test_the_trainer_trains_on_the_rows_of_the_curriculum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny_trainer(tmp_path, selector=Walking(), schedule=Schedule(2, 3, 1))
    asked: list[tuple[int, list[int]]] = []
    rows = trainer.curriculum.rows
    monkeypatch.setattr(trainer.curriculum, "rows", lambda step: asked.append((step, rows(step))) or asked[-1][1])
    trainer.train()
    assert [step for step, _ in asked] == list(range(5))
    assert sorted(row for _, found in asked[2:] for row in found) == list(range(12, 24))
