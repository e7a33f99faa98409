from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path

import pytest

import dataflex.data.templates as templates
from dataflex import select
from dataflex.curriculum.schedule import Schedule
from dataflex.data.sources import load_samples
from dataflex.errors import SelectionError
from dataflex.offline.work import dated_template
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer
from dataflex.training.arguments import TrainingArguments
from dataflex.training.trainer import Trainer
from dataflex.utils.distributed import Ranks
from helpers.runs import tiny_trainer

DATED = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ strftime_now('%d %b %Y') }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {{ strftime_now('%d %b %Y') }}\n{% endif %}"
)
ROWS = [{"instruction": f"What is {n} plus {n}?", "output": str(2 * n)} for n in range(8)]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch):
    """Sets the day that the clock shows."""

    def set_day(day: int) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2026, 11, day, 12)

        monkeypatch.setattr(templates, "datetime", Clock)

    return set_day


def dated_tokenizer():
    return tiny_tokenizer(chat_template=DATED)


def trainer(folder: Path, steps: int = 4, **args) -> Trainer:
    arguments = TrainingArguments(output_dir=folder, save_steps=2, logging_steps=1, plot_loss=False, **args)
    model = tiny_lora(tiny_model())
    return Trainer(model, dated_tokenizer(), ROWS, ROWS[:2], RandomSelector(), schedule=Schedule(steps), args=arguments)


def losses(folder: Path) -> list[float]:
    entries = map(json.loads, (folder / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines())
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_a_template_prints_one_date(on):
    on(3)
    template = templates.ChatTemplate.load(None, dated_tokenizer())
    on(4)
    assert "03 Nov 2026" in template.render([{"role": "user", "content": "hello"}])
    assert template.prints_date
    assert not templates.ChatTemplate.load("chatml", dated_tokenizer()).prints_date
    sample = load_samples(ROWS)[0]
    later = templates.ChatTemplate.load(None, dated_tokenizer(), now=template.now)
    assert later.encode(sample, 64) == template.encode(sample, 64)


def test_a_run_goes_on_another_day_with_the_date_on_which_it_began(on, tmp_path, caplog):
    on(3)
    trainer(tmp_path / "whole").train()
    on(4)
    with caplog.at_level(logging.INFO):
        trainer(tmp_path / "resumed", resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2").train()
    assert "the template prints the date: that of 2026-11-03, when the run began, is kept" in caplog.text
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")
    trainer(tmp_path / "other").train()
    assert losses(tmp_path / "other") != losses(tmp_path / "whole")


def test_a_run_keeps_the_date_of_its_start_whatever_its_template(on, tmp_path):
    for day in (3, 4):
        on(day)
        tiny_trainer(tmp_path, selector=RandomSelector(), schedule=Schedule(1), resume_from_checkpoint=day == 4).train()
        state = json.loads((tmp_path / "trainer_state.json").read_text(encoding="utf-8"))
        assert state["date"] == "2026-11-03T12:00:00"


def test_a_selection_that_was_killed_goes_on_with_its_date(on, tmp_path, caplog):
    def chosen(day: int):
        on(day)
        return select(
            tiny_lora(tiny_model()),
            dated_tokenizer(),
            ROWS,
            selector="delta_loss",
            num_samples=3,
            output_dir=tmp_path / "work",
        )

    first = chosen(3)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*") if path.is_file()}
    with caplog.at_level(logging.INFO):
        second = chosen(4)
    assert "that of 2026-11-03, when" in caplog.text
    assert second.indices.tolist() == first.indices.tolist()
    assert json.loads((tmp_path / "work" / "begun.json").read_text(encoding="utf-8")) == {"date": "2026-11-03T12:00:00"}
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_an_odd_note_of_the_date_is_named(on, tmp_path):
    on(3)
    for content in ("{}", "[]", '{"date": 3}', '{"date": "yesterday"}', "x"):
        (tmp_path / "begun.json").write_text(content, encoding="utf-8")
        with pytest.raises(SelectionError, match=r"cannot read .*begun\.json"):
            dated_template(None, dated_tokenizer(), tmp_path, Ranks())
