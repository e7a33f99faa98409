"""``df.select``: any selector, once, from Python."""

from __future__ import annotations

import datetime
import decimal
import json

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import dataflex
from dataflex.curriculum.schedule import Schedule
from dataflex.data.dataset import TokenizedDataset
from dataflex.data.sources import load_samples
from dataflex.data.templates import ChatTemplate
from dataflex.errors import CheckpointError, ConfigError, DataError, PluginError, SelectionError
from dataflex.gradients.samples import SampleFeatures
from dataflex.offline.context import resolve_count
from dataflex.selectors.random import RandomSelector
from dataflex.testing import EchoReward, tiny_dataset, tiny_lora, tiny_model, tiny_samples, tiny_tokenizer
from helpers import foreign
from helpers.rows import alpaca_rows, write_rows
from helpers.runs import tiny_nice, tiny_trainer

NICE = {"reward": EchoReward(), "mc_samples": 2, "max_new_tokens": 4, "gradient_type": "sgd", "proj_dim": 256}
LESS = {"gradient_type": "sgd", "proj_dim": 256}


def select(rows, targets=None, **options):
    targets = alpaca_rows(3, seed=100) if targets is None else targets
    defaults = {"num_samples": 4, "template": "chatml", **({} if "selector" in options else LESS)}
    model = options.pop("model", None) or tiny_lora(tiny_model())
    return dataflex.select(model, tiny_tokenizer(), rows, targets, **(defaults | options))


@pytest.mark.parametrize(
    ("selector", "params"), [("less", LESS), ("nice", NICE), ("random", {}), ("loss", {}), ("delta_loss", {})]
)
def test_every_selector_selects(selector, params):
    model = tiny_lora(tiny_model()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    rows = alpaca_rows(10)
    chosen = select(rows, selector=selector, model=model, **params)
    assert (len(chosen.indices), chosen.selector, chosen.step) == (4, selector, 0)
    subset = chosen.to_dataset()
    assert isinstance(subset, datasets.Dataset)
    notes = list(chosen.notes())
    assert list(subset) == [
        {**rows[row], "_dataflex": note} for row, note in zip(chosen.rows.tolist(), notes, strict=True)
    ]
    assert list(chosen.to_dataset(notes=False)) == [rows[row] for row in chosen.rows.tolist()]
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_selection_has_the_page_that_the_command_writes(tmp_path):
    chosen = select(alpaca_rows(10), selector="nice", output_dir=tmp_path / "s.work", **NICE)
    report = chosen.write_report(tmp_path / "s.jsonl")
    page = (tmp_path / "s.report.html").read_text(encoding="utf-8")
    assert report.tables["selections"].to_pylist()[0]["selected"] == 4
    assert "What was rewarded?" in page
    assert "A score is the cosine of the row&#39;s gradient with those of the targets, the mean over all" in page
    ranks = pq.read_table(tmp_path / "s.scores.parquet").column("rank").to_pylist()
    assert [ranks.index(place) for place in range(4)] == chosen.indices.tolist()
    with pytest.raises(SelectionError, match=r"s\.scores\.parquet, .*s\.report\.html would be overwritten"):
        chosen.write_report(tmp_path / "s")


def test_tokenised_rows_are_kept_where_it_is_asked_for_and_read_again(tmp_path, monkeypatch):
    rows, settings = alpaca_rows(10), {"selector": "random", "data_cache_dir": tmp_path / "c"}
    first = select(rows, preprocessing_num_workers=2, **settings)
    assert len([*(tmp_path / "c" / "tokenized").glob("*/rows.json")]) == 2  # candidates and targets
    with monkeypatch.context() as patch:
        patch.setattr(ChatTemplate, "encode_batch", None)  # now nothing can be tokenised
        assert select(rows, **settings).rows.tolist() == first.rows.tolist()
        with pytest.raises(TypeError):
            select(rows, overwrite_cache=True, **settings)
    with pytest.raises(ConfigError, match="preprocessing_num_workers is 0, expected at least 1"):
        select(rows, preprocessing_num_workers=0, **settings)


def test_rows_without_an_answer_are_no_candidates_and_shift_nothing():
    rows = [{"messages": [dict(message) for message in sample.messages]} for sample in tiny_samples(6)]
    del rows[2]["messages"][1]
    chosen = select(rows, num_samples=1.0)
    assert sorted(chosen.rows.tolist()) == [0, 1, 3, 4, 5]
    assert chosen.indices.tolist() != chosen.rows.tolist()
    assert all(len(row["messages"]) == 2 for row in chosen.to_dataset())


def test_to_dataset_keeps_the_features_of_a_dataset_and_refuses_another(tmp_path):
    data = datasets.Dataset.from_list(alpaca_rows(8)).cast_column(
        "task", datasets.ClassLabel(names=["capital", "reverse", "sum"])
    )
    chosen = select(data)
    subset = chosen.to_dataset(data, notes=False)
    assert subset.features == data.features
    assert list(subset) == [data[row] for row in chosen.rows.tolist()]
    noted = chosen.to_dataset(data)
    assert {name: noted.features[name] for name in data.features} == data.features
    assert list(noted["_dataflex"]) == list(chosen.notes())
    again = select(noted, num_samples=2)
    assert list(again.to_dataset()["_dataflex"]) == list(again.notes())
    with pytest.raises(SelectionError, match="is not the one that was selected"):
        chosen.to_dataset(datasets.Dataset.from_list(alpaca_rows(8, seed=5)))
    with pytest.raises(SelectionError, match="is not the one that was selected"):
        chosen.to_dataset(data.select([0]))
    with pytest.raises(SelectionError, match="is not the one that was selected"):
        chosen.to_dataset(alpaca_rows(8, seed=5))


def test_rows_that_have_changed_since_are_noticed(tmp_path):
    file = tmp_path / "a.jsonl"
    write_rows(file, alpaca_rows(8))
    chosen = select(file)
    write_rows(file, alpaca_rows(8)[::-1])
    with pytest.raises(SelectionError, match=r"is not the one that was selected\n.*has changed"):
        chosen.write_jsonl(tmp_path / "s.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_rows_of_mixed_types_need_a_file(tmp_path):
    rows = [row | {"extra": extra} for row, extra in zip(alpaca_rows(4), [1, "one", [1], None], strict=True)]
    chosen = select(rows, num_samples=4)
    with pytest.raises(DataError, match=r"do not fit into one table.*\n.*write_jsonl"):
        chosen.to_dataset()
    chosen.write_jsonl(tmp_path / "s.jsonl")
    assert len((tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_a_tokenised_dataset_knows_no_rows(tmp_path):
    chosen = select(tiny_dataset(8))
    with pytest.raises(SelectionError, match="tokenised dataset, which does not know its rows"):
        chosen.write_jsonl(tmp_path / "s.jsonl")
    assert len(chosen.to_dataset(alpaca_rows(8))) == 4


@pytest.mark.parametrize("form", [list, datasets.Dataset.from_list], ids=["list", "dataset"])
def test_rows_as_trainers_of_transformers_take_them(form):
    rows, targets = foreign.rows(12), foreign.targets()
    params = {"selector": "less", "gradient_type": "sgd", "proj_dim": 128}
    chosen = select(form(rows), form(targets), num_samples=3, **params)
    of_tokens = TokenizedDataset.from_columns(rows), TokenizedDataset.from_columns(targets)
    assert np.array_equal(chosen.scores, select(*of_tokens, num_samples=3, **params).scores)
    assert chosen.to_dataset(notes=False)["input_ids"] == [rows[row]["input_ids"] for row in chosen.rows.tolist()]
    with pytest.raises(SelectionError, match="'nice' reads the text of rows, and the evaluation set has tokens alone"):
        select(form(rows), form(targets), selector=tiny_nice(), num_samples=3)


def test_written_rows_are_those_of_the_source_with_notes(tmp_path):
    rows = alpaca_rows(8)
    chosen = select(rows)
    chosen.write_jsonl(tmp_path / "s.jsonl")
    lines = (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()
    for rank, (line, index) in enumerate(zip(lines, chosen.indices.tolist(), strict=True)):
        row = json.loads(line)
        assert row.pop("_dataflex") == {
            "score": chosen.scores[index],
            "rank": rank,
            "selector": "less",
            "row": chosen.rows[rank],
        }
        assert row == rows[chosen.rows[rank]]
    with pytest.raises(SelectionError, match=r"would be overwritten\n.*--overwrite"):
        chosen.write_jsonl(tmp_path / "s.jsonl")
    chosen.write_jsonl(tmp_path / "s.jsonl", overwrite=True)
    assert not list(tmp_path.glob(".*"))


def test_lines_of_json_lines_files_are_copied_as_they_are(tmp_path):
    rows = alpaca_rows(5)
    texts = [json.dumps(row)[:-1] + ', "n": 1.50e+03, "u": "\\u00e9", "big": 12345678901234567890123}' for row in rows]
    (tmp_path / "a.jsonl").write_text("\r\n\n".join(texts), encoding="utf-8")
    chosen = select(str(tmp_path / "a.jsonl"), num_samples=5)
    chosen.write_jsonl(tmp_path / "s.jsonl")
    lines = (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()
    assert [line.partition(', "_dataflex": ')[0] + "}" for line in lines] == [texts[row] for row in chosen.rows]
    again = select(str(tmp_path / "s.jsonl"), num_samples=2)
    again.write_jsonl(tmp_path / "t.jsonl")
    for line, row in zip((tmp_path / "t.jsonl").read_text(encoding="utf-8").splitlines(), again.rows, strict=True):
        assert line.count("_dataflex") == 1
        assert json.loads(line)["_dataflex"]["row"] == row


def test_several_sources_keep_their_columns_and_are_read_again_as_one(tmp_path):
    alpaca = alpaca_rows(4)
    chats = [
        {"messages": [dict(message) for message in sample.messages], "source": i}
        for i, sample in enumerate(tiny_samples(4, seed=7))
    ]
    write_rows(tmp_path / "a.jsonl", alpaca)
    (tmp_path / "b.json").write_text(json.dumps(chats, indent=1), encoding="utf-8")
    chosen = select([tmp_path / "a.jsonl", tmp_path / "b.json"], num_samples=8)
    chosen.write_jsonl(tmp_path / "s.jsonl")
    written = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = [row.pop("_dataflex")["row"] for row in written]
    assert written == [(alpaca + chats)[number] for number in numbers]
    found = load_samples(tmp_path / "s.jsonl")
    assert [sample.messages for sample in found] == [chosen.samples[index].messages for index in chosen.indices]


def test_values_that_json_lacks_are_written_in_a_plain_form_and_read_again(tmp_path):
    extra = {
        "day": datetime.datetime(2024, 1, 2, 3),
        "price": decimal.Decimal("1.10"),
        "raw": b"\xff\xfe",
        "score": float("nan"),
        "nested": {"days": [datetime.date(2024, 1, 2)]},
    }
    data = datasets.Dataset.from_list([row | extra for row in alpaca_rows(4)])
    data.to_parquet(tmp_path / "a.parquet")
    for source in (data, str(tmp_path / "a.parquet"), [row | extra | {"n": np.int64(3)} for row in alpaca_rows(4)]):
        chosen = select(source, num_samples=2)
        chosen.write_jsonl(tmp_path / "s.jsonl", overwrite=True)
        lines = (tmp_path / "s.jsonl").read_text(encoding="utf-8").splitlines()
        for row in [json.loads(line, parse_constant=pytest.fail) for line in lines]:
            assert row["day"] == "2024-01-02T03:00:00"
            assert (row["price"], row["raw"], row["score"]) == ("1.10", "//4=", None)
            assert row["nested"] == {"days": ["2024-01-02"]}
            assert row.get("n", 3) == 3
        again = load_samples(tmp_path / "s.jsonl")
        assert [sample.messages for sample in again] == [sample.messages for sample in chosen.chosen]


def test_values_without_a_form_in_json_are_named_for_all_rows(tmp_path):
    chosen = select([row | {"made": object()} for row in alpaca_rows(8)], num_samples=7)
    with pytest.raises(DataError, match=r"^7 rows cannot be written as JSON:\n  list of rows, row ") as caught:
        chosen.write_jsonl(tmp_path / "s.jsonl")
    lines = caught.value.message.split("\n")
    assert "column 'made': <object object at " in lines[1]
    assert lines[-1] == "  ... and 2 more"
    assert "to_dataset" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_adam_needs_a_checkpoint(tmp_path):
    rows = alpaca_rows(6)
    with pytest.raises(SelectionError, match=r"there is no optimizer\n.*gradient_type: sgd, or a checkpoint"):
        select(rows, gradient_type="adam")
    tiny_trainer(tmp_path, selector=RandomSelector(), schedule=Schedule(warmup_step=3), save_steps=2).train()
    model = tiny_lora(tiny_model())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen = select(rows, gradient_type="adam", checkpoint=tmp_path / "checkpoint-2", model=model)
    assert chosen.step == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    plain = select(rows, checkpoint=tmp_path / "checkpoint-2")
    assert not np.allclose(plain.scores, chosen.scores)
    assert not np.allclose(plain.scores, select(rows).scores)
    with pytest.raises(CheckpointError, match="manifest"):
        select(rows, checkpoint=tmp_path)


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_selection_that_was_stopped_goes_on(tmp_path, monkeypatch, finished):
    rows = alpaca_rows(8)
    real, computed, limit = SampleFeatures.features, [], 2 * finished

    def features(self, items):
        if len(self) == len(rows):
            if len(computed) + len(items) > limit:
                raise KeyboardInterrupt
            computed.extend(items)
        return real(self, items)

    monkeypatch.setattr(SampleFeatures, "features", features)
    with pytest.raises(KeyboardInterrupt):
        select(rows, output_dir=tmp_path / "a", save_interval=2)
    limit = 8
    resumed = select(rows, output_dir=tmp_path / "a", save_interval=2)
    assert sorted(computed) == list(range(8))
    monkeypatch.undo()
    whole = select(rows, output_dir=tmp_path / "b", save_interval=2)
    assert np.array_equal(resumed.scores, whole.scores)
    files = [sorted((tmp_path / name).rglob("features-*")) for name in "ab"]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


@pytest.mark.parametrize(("wanted", "count"), [(0.05, 14), (1, 1), (1.0, 270), (0.0001, 1), (270, 270), (0.5, 135)])
def test_numbers_and_shares(wanted, count):
    assert resolve_count(wanted, 270) == count


@pytest.mark.parametrize("wanted", [0, 271, 0.0, 1.5, -0.1, -3, float("nan")])
def test_numbers_that_do_not_fit(wanted):
    with pytest.raises(SelectionError, match="num_samples"):
        resolve_count(wanted, 270)


def test_wrong_use_is_refused():
    rows = alpaca_rows(4)
    with pytest.raises(SelectionError, match="'less' needs an evaluation set"):
        dataflex.select(tiny_lora(tiny_model()), tiny_tokenizer(), rows, num_samples=1, template="chatml", **LESS)
    with pytest.raises(ConfigError, match="less: unknown key 'proj_dmi'; did you mean 'proj_dim'"):
        select(rows, proj_dmi=3)
    with pytest.raises(PluginError, match="unknown selector 'les'"):
        select(rows, selector="les")
    with pytest.raises(SelectionError, match="need the name of a selector"):
        select(rows, selector=RandomSelector(), alpha=1)
