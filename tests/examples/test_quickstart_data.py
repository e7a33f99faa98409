from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dataflex.config import load_config
from dataflex.data.sources import load_samples
from helpers.scripts import ROOT, load_script

DATA = ROOT / "examples" / "quickstart" / "data"
CONFIG = ROOT / "examples" / "quickstart" / "nice.yaml"
make_data = load_script("examples/quickstart/make_data.py")


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def family(task: str) -> list[dict[str, Any]]:
    return [row for row in rows("train") if row["task"] == task]


def words(row: dict[str, Any]) -> list[str]:
    return re.findall(r"\w+", " ".join(row.get(key, "") for key in ("instruction", "input", "output")))


def test_the_committed_files_are_what_the_generator_writes(tmp_path: Path) -> None:
    make_data.write(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"train.jsonl", "eval.jsonl", "dataset_info.json"}
    assert {name: (tmp_path / name).read_bytes() for name in names} == {
        name: (DATA / name).read_bytes() for name in names
    }


def test_nine_families_of_thirty_rows_and_sixteen_of_the_target() -> None:
    assert Counter(row["task"] for row in rows("train")) == dict.fromkeys(
        ["capitals", "arithmetic", "units", "backwards", "weekdays", "sorting", "letters", "opposites", "noise"], 30
    )
    assert [row["task"] for row in rows("eval")] == ["capitals"] * 16


def test_the_families_are_mixed() -> None:
    assert len({row["task"] for row in rows("train")[:30]}) > 5


def test_ids_and_questions_occur_once() -> None:
    everything = rows("train") + rows("eval")
    assert len({row["id"] for row in everything}) == len(everything) == 286
    assert len({(row["instruction"], row.get("input")) for row in everything}) == len(everything)


def test_no_training_row_mentions_a_country_or_a_capital_of_the_evaluation_set() -> None:
    seen = {word for row in rows("train") for word in words(row)}
    for row in rows("eval"):
        match = re.fullmatch(r"The capital of (.+) is (.+)\.", row["output"])
        assert match is not None
        for name in match.groups():
            assert not set(name.split()) & seen - {"New", "South"}, name


@pytest.mark.parametrize("row", family("arithmetic"), ids=lambda row: row["id"])
def test_sums_are_right(row: dict[str, Any]) -> None:
    a, b, total = map(int, re.findall(r"\d+", row["output"]))
    assert row["instruction"] == f"What is {a} plus {b}?"
    assert a + b == total


@pytest.mark.parametrize("row", family("weekdays"), ids=lambda row: row["id"])
def test_weekdays_are_right(row: dict[str, Any]) -> None:
    week = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    n, start, end = re.fullmatch(r"(\d) days after (\w+) comes (\w+)\.", row["output"]).groups()  # type: ignore[union-attr]
    day = start
    for _ in range(int(n)):
        day = week[(week.index(day) + 1) % 7]
    assert day == end
    assert row["instruction"] == f"Which weekday comes {n} days after {start}?"


def test_words_are_spelt_backwards_and_their_letters_counted() -> None:
    for row in family("backwards"):
        assert row["output"] == f"Written backwards, '{row['input']}' is '{row['input'][::-1]}'."
    for row in family("letters"):
        place, word, letter = re.fullmatch(r"The (\w+) letter of the word '(\w+)' is '(\w)'\.", row["output"]).groups()  # type: ignore[union-attr]
        assert word[["first", "second", "third", "fourth", "fifth"].index(place)] == letter


def test_lists_are_sorted() -> None:
    for row in family("sorting"):
        assert [int(n) for n in row["output"].split(", ")] == sorted(int(n) for n in row["input"].split(", "))


def test_units_are_converted() -> None:
    small_in_large = {"hours": 60, "kilometres": 1000, "weeks": 7, "feet": 12}
    for row in family("units"):
        many, few = map(int, re.findall(r"\d+", row["output"]))
        assert many == few * small_in_large[row["output"].rstrip(".").split()[-1]]


def test_noise_asks_like_the_others_and_answers_with_gibberish() -> None:
    def opening(row: dict[str, Any]) -> str:
        return " ".join(re.sub(r"\d+", "n", row["instruction"]).split()[:3])

    noise = family("noise")
    assert {opening(row) for row in noise} <= {opening(row) for row in rows("train") if row["task"] != "noise"}
    assert all(re.fullmatch(r"[bcdfghjklmnpqrstvwxz]+( [bcdfghjklmnpqrstvwxz]+){1,3}", row["output"]) for row in noise)


def test_the_registry_names_both_sets() -> None:
    train = load_samples("quickstart_train", dataset_dir=DATA)
    evaluation = load_samples("quickstart_eval", dataset_dir=DATA)
    assert (len(train), len(evaluation)) == (270, 16)
    assert {sample.metadata["task"] for sample in evaluation} == {"capitals"}
    assert [sample.reference for sample in train] == [row["output"] for row in rows("train")]
    sorting = next(sample for sample in train if sample.metadata["task"] == "sorting")
    assert re.search(r"\d+, \d+, \d+, \d+", sorting.prompt[-1]["content"])


def test_the_configuration_is_valid_and_fits_the_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(CONFIG, [f"model_name_or_path={tmp_path}"], check_component=True)
    assert config.dataset == ["quickstart_train"]
    assert config.eval_dataset == ["quickstart_eval"]
    assert max(config.warmup_step, config.update_step) * config.per_device_train_batch_size <= len(rows("train"))
