from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dataflex.cli import cli
from dataflex.data import ChatTemplate
from dataflex.doctor.preview import marked
from dataflex.testing import tiny_samples, tiny_tokenizer
from helpers.doctor import write_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_project(tmp_path)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["preview", *arguments])


def test_what_is_learnt_is_the_answer_with_its_end() -> None:
    tokenizer = tiny_tokenizer()
    sample = tiny_samples(1)[0]
    row = ChatTemplate.load("chatml", tokenizer).encode(sample, 128)
    text = marked(row, tokenizer, colour=False)
    assert f"[[{sample.reference}<|im_end|>]]" in text
    assert text.count("[[") == 1
    assert sample.messages[0]["content"] in text
    plain = text.replace("[[", "").replace("]]", "")
    assert plain == tokenizer.decode(row.input_ids)


def test_colour_replaces_the_brackets() -> None:
    tokenizer = tiny_tokenizer()
    row = ChatTemplate.load("chatml", tokenizer).encode(tiny_samples(1)[0], 128)
    text = marked(row, tokenizer, colour=True)
    assert "\x1b[32m\x1b[1m" in text
    assert "[[" not in text


def test_data_cannot_steer_the_terminal() -> None:
    tokenizer = tiny_tokenizer()
    (sample,) = tiny_samples(1)
    hostile = replace(sample, messages=({"role": "assistant", "content": "a\x1b[2Jb\tc\nd\x07"},))
    row = ChatTemplate.load("chatml", tokenizer).encode(hostile, 128)
    assert "a\\x1b[2Jb\tc\nd\\x07" in marked(row, tokenizer, colour=False)


@pytest.mark.usefixtures("project")
def test_three_rows_and_the_counts() -> None:
    done = run("run.yaml")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("training set: 12 rows, all looked at\n  tokens a row: ")
    assert done.stdout.count("<|im_start|>assistant\n[[") == 3
    assert [line.split(" ")[1] for line in done.stdout.splitlines() if line.startswith("row ")] == ["0", "6", "11"]
    assert "learnt is what is between [[ and ]]" in done.stdout


@pytest.mark.usefixtures("project")
def test_the_evaluation_set_and_fewer_rows() -> None:
    done = run("run.yaml", "--eval", "--samples", "1", "--rows", "2")
    assert done.stdout.startswith("evaluation set: 4 rows, 2 of them looked at")
    assert done.stdout.count("\nrow ") == 1


def test_rows_without_an_answer_are_shown_as_such(project: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "Hi"}]}] * 3
    (project / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("run.yaml")
    assert done.exit_code == 0, done.output
    assert "left out of training: 3 (ids 0, 1, 2)" in done.stdout
    assert "0 learnt" in done.stdout


@pytest.mark.usefixtures("project")
def test_no_evaluation_set_is_an_error_with_a_hint() -> None:
    done = run("run.yaml", "--eval", "eval_dataset=null", "component_name=random", "component_params={}")
    assert done.exit_code == 1
    assert "set eval_dataset or val_size" in done.stderr
