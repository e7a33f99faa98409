"""Real files, as they are in the wild: ``shared/data`` beside the repository; skipped where it is absent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataflex.data.dataset import tokenize
from dataflex.data.registry_file import parse_entry, read_registry
from dataflex.data.sources import load_samples
from dataflex.data.templates import ChatTemplate
from dataflex.errors import DataError
from dataflex.testing import tiny_tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder shared/data is not beside the repository")


def test_alpaca() -> None:
    samples = load_samples("alpaca_en_demo", dataset_dir=DATA)
    rows = json.loads((DATA / "alpaca_en_demo.json").read_text())
    assert len(samples) == len(rows) == 999
    assert [sample.reference for sample in samples] == [row["output"] for row in rows]
    assert all(row["input"] in sample.messages[0]["content"] for row, sample in zip(rows, samples, strict=True))


def test_sharegpt_with_tools_keeps_every_turn() -> None:
    samples = load_samples("glaive_toolcall_en_demo", dataset_dir=DATA)
    rows = json.loads((DATA / "glaive_toolcall_en_demo.json").read_text())
    role = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
    for row, sample in zip(rows, samples, strict=True):
        assert [message["role"] for message in sample.messages] == [role[turn["from"]] for turn in row["conversations"]]
        calls = [message["tool_calls"][0]["function"] for message in sample.messages if "tool_calls" in message]
        expected = [json.loads(turn["value"]) for turn in row["conversations"] if turn["from"] == "function_call"]
        assert calls == expected
        assert len(sample.tools) == len(json.loads(row["tools"]))


def test_typed_parts() -> None:
    samples = load_samples(DATA / "v1_sft_demo.jsonl")
    assert len(samples) == 500
    assert samples[0].prompt == ({"role": "user", "content": "hi"},)
    assert all(message.get("train", True) for sample in samples for message in sample.messages)


@pytest.mark.parametrize("name", ["chatml", "alpaca"])
def test_real_rows_are_tokenised(name: str) -> None:
    tokenizer = tiny_tokenizer()
    samples = [
        sample
        for spec in ("alpaca_en_demo", "glaive_toolcall_en_demo")
        for sample in load_samples(spec, dataset_dir=DATA, max_samples=20)
    ]
    dataset = tokenize(samples, ChatTemplate.load(name, tokenizer), 100_000, progress=False)
    assert (dataset.report.kept, dataset.report.truncated) == (40, 0)
    for example in dataset:
        answers = [m["content"] for m in example.sample.messages if m["role"] == "assistant" and "tool_calls" not in m]
        labelled = tokenizer.decode([label for label in example.labels if label != -100])
        assert all(answer in labelled for answer in answers)


def test_every_entry_of_the_registry_parses_or_says_why() -> None:
    entries = read_registry(DATA)
    usable, refused = 0, set()
    for name, entry in entries.items():
        try:
            parse_entry(DATA, name, entry)
            usable += 1
        except DataError as error:
            refused.add(error.message.split(": ")[-1])
    assert usable > 60
    assert refused == {
        "preference pairs cannot be trained on",
        "KTO feedback cannot be trained on",
        "images cannot be trained on",
        "videos cannot be trained on",
        "audio cannot be trained on",
        "audio and videos cannot be trained on",
        "images and preference pairs cannot be trained on",
        "comes from ModelScope only",
    }


@pytest.mark.parametrize("name", ["wiki_demo", "c4_demo", "identity"])
def test_entries_without_a_file(name: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_samples(name, dataset_dir=DATA)
