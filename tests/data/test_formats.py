"""Rows of every form become samples; damaged rows are reported together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import pytest

from dataflex.data.formats import Columns, DatasetFormat
from dataflex.data.readers import arrow_rows
from dataflex.data.rows import Layout, convert_rows, recognise, unique_ids
from dataflex.errors import DataError
from dataflex.plugins import registry as plugins
from dataflex.plugins.hookspecs import Register, hookimpl
from dataflex.types import Sample

CALL = {"name": "add", "arguments": {"a": 1, "b": 2}}
TOOL = {"name": "add", "parameters": {"type": "object"}}
WRAPPED_CALL = {"type": "function", "function": CALL}
WRAPPED_TOOL = {"type": "function", "function": TOOL}


def convert(*rows: Mapping[str, Any], layout: Layout | None = None) -> list[Sample]:
    return convert_rows(rows, "data", layout=layout or Layout(), numbers=range(len(rows)))


def turns(sample: Sample) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in sample.messages]


def test_alpaca_joins_instruction_and_input() -> None:
    (sample,) = convert({"instruction": "Add.", "input": "1 2", "output": "3"})
    assert turns(sample) == [("user", "Add.\n1 2"), ("assistant", "3")]
    assert sample.reference == "3"


def test_alpaca_with_empty_or_absent_input() -> None:
    samples = convert({"instruction": "Hi", "input": "", "output": "a"}, {"instruction": "Hi", "output": "b"})
    assert [turns(sample)[0] for sample in samples] == [("user", "Hi"), ("user", "Hi")]


def test_alpaca_history_and_system_come_first() -> None:
    row = {"instruction": "c", "input": None, "output": "d", "system": "S", "history": [["a", "b"]]}
    (sample,) = convert(row)
    assert turns(sample) == [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


def test_alpaca_history_must_be_pairs() -> None:
    with pytest.raises(DataError, match=r"row 0: history has \['a'\], expected \[question, answer\] pairs"):
        convert({"instruction": "c", "output": "d", "history": [["a"]]})


def test_sharegpt_keeps_the_order_of_roles() -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "S"},
            {"from": "human", "value": "1+2?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "3"},
            {"from": "observation", "value": "three"},
            {"from": "gpt", "value": "It is 3."},
        ],
        "tools": json.dumps([TOOL]),
    }
    (sample,) = convert(row)
    roles = [message["role"] for message in sample.messages]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant"]
    assert sample.messages[2]["tool_calls"] == [WRAPPED_CALL]
    assert sample.messages[2]["content"] == ""
    assert sample.tools == (WRAPPED_TOOL,)
    assert sample.metadata == {}


@pytest.mark.parametrize("tools", ["", "[]", [], None])
def test_no_tools(tools: object) -> None:
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": tools}
    assert convert(row)[0].tools == ()


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("{", "tools is not valid JSON"),
        ("1" * 5000, "tools is not valid JSON .Exceeds the limit"),
        ("{}", "tools is {}, expected a list"),
        ([{"type": "function"}], "with a 'name'"),
    ],
)
def test_damaged_tools(tools: object, message: str) -> None:
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    with pytest.raises(DataError, match=message):
        convert({"conversations": turns, "tools": tools})


def test_a_conversation_needs_a_turn() -> None:
    with pytest.raises(DataError, match="the conversation is empty"):
        convert({"conversations": [{"from": "system", "value": "S"}]})
    with pytest.raises(DataError, match="messages is 'a', expected a list of turns"):
        convert({"messages": "a"}, layout=Layout("openai"))


def test_tools_as_a_list_of_wrapped_definitions() -> None:
    row = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": [WRAPPED_TOOL]}
    assert convert(row)[0].tools == (WRAPPED_TOOL,)


def test_sharegpt_system_column_and_several_calls() -> None:
    row = {
        "system": "S",
        "messages": [{"from": "human", "value": "a"}, {"from": "function_call", "value": json.dumps([CALL, CALL])}],
    }
    (sample,) = convert(row)
    assert turns(sample) == [("system", "S"), ("user", "a"), ("assistant", "")]
    assert sample.messages[2]["tool_calls"] == [WRAPPED_CALL, WRAPPED_CALL]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"from": "bing", "value": "x"}, "from 'bing', expected one of human, gpt, observation, function_call, system"),
        ({"from": "system", "value": "x"}, "turn 1 is a system turn"),
        ({"from": "function_call", "value": "add(1)"}, "function_call is not valid JSON"),
        ({"from": "function_call", "value": "[1]"}, "expected an object with 'name' and 'arguments'"),
        ({"from": "function_call", "value": "[]"}, "function_call is an empty list"),
        ({"from": "function_call", "value": '{"name": "f", "arguments": [1]}'}, r"arguments \[1\], expected an object"),
        ({"from": "gpt", "value": None}, "'value' is missing"),
        ({"from": ["gpt"], "value": "x"}, "expected one of human"),
    ],
)
def test_damaged_sharegpt_turns(turn: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert({"conversations": [{"from": "human", "value": "a"}, turn]})


def test_system_turn_and_other_system_column() -> None:
    row = {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "a"}], "system": "T"}
    with pytest.raises(DataError, match="different text in its system column"):
        convert(row)


def test_openai_messages() -> None:
    row = {
        "messages": [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "1+2"}, {"type": "text", "text": "?"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "x", **WRAPPED_CALL}]},
            {"role": "tool", "content": "3", "tool_call_id": "x"},
            {"role": "assistant", "content": "It is 3."},
        ],
        "tools": [TOOL],
    }
    (sample,) = convert(row)
    assert turns(sample) == [
        ("system", "S"),
        ("user", "1+2?"),
        ("assistant", ""),
        ("tool", "3"),
        ("assistant", "It is 3."),
    ]
    assert sample.messages[2]["tool_calls"] == [{"id": "x", **WRAPPED_CALL}]
    assert sample.messages[3]["tool_call_id"] == "x"
    assert [len(sample.prompt), sample.reference] == [4, "It is 3."]


def test_openai_arguments_may_be_json_text() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}]}
    assert convert(row)[0].messages[1]["tool_calls"] == [WRAPPED_CALL]


@pytest.mark.parametrize("key", ["loss_weight", "weight"])
def test_weight_zero_takes_a_turn_out_of_the_loss(key: str) -> None:
    answers = [{"role": "assistant", "content": "b", key: weight} for weight in (0.0, 1.0)]
    (sample,) = convert({"messages": [{"role": "user", "content": "a", key: 0.0}, *answers]})
    assert [message.get("train", True) for message in sample.messages] == [True, False, True]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "assistant", "content": [{"type": "image_url", "image_url": "x"}]}, "part of type 'image_url'"),
        ({"role": "assistant", "content": "b", "loss_weight": 0.5}, "loss weight 0.5; only 0 and 1"),
        ({"role": "assistant", "content": None}, "neither content nor tool_calls"),
        ({"role": "robot", "content": "b"}, "role 'robot', expected one of system, developer, user, assistant"),
        ({"role": "user", "content": 3}, "content is 3, expected text"),
        ({"role": "user", "content": ["b"]}, "expected an object with 'type' and 'text'"),
        ({"role": "user", "content": [{"type": "text"}]}, "a text part without 'text'"),
    ],
)
def test_damaged_openai_turns(turn: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        convert({"messages": [{"role": "user", "content": "a"}, turn]})


def test_prompt_completion_text_and_messages() -> None:
    samples = convert(
        {"prompt": "a", "completion": "b"},
        {
            "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        },
    )
    assert turns(samples[0]) == [("user", "a"), ("assistant", "b")]
    assert turns(samples[1]) == [("system", "S"), ("user", "a"), ("assistant", "b")]


def test_completion_must_be_an_answer() -> None:
    with pytest.raises(DataError, match="completion ends with a user turn"):
        convert({"prompt": "a", "completion": [{"role": "user", "content": "b"}]})


def test_other_columns_become_metadata_and_id_the_id() -> None:
    row = {"id": 7, "prompt": "a", "completion": "b", "task": "sum", "reference": None}
    (sample,) = convert(row)
    assert (sample.id, sample.row) == ("7", 0)
    assert sample.metadata == {"task": "sum", "reference": None}


def test_without_an_id_the_row_number_is_the_id() -> None:
    samples = convert({"prompt": "a", "completion": "b"}, {"id": None, "prompt": "a", "completion": "b"})
    assert [sample.id for sample in samples] == ["0", "1"]


def test_repeated_ids_get_a_suffix() -> None:
    rows = [{"id": name, "prompt": "a", "completion": "b"} for name in ("a", "a", "a#2", "b", "a")]
    assert [sample.id for sample in unique_ids(convert(*rows))] == ["a", "a#3", "a#2", "b", "a#4"]


def test_bad_rows_are_reported_together() -> None:
    rows: list[dict[str, Any]] = [{"prompt": "a", "completion": "b"}]
    rows += [{"prompt": "a", "completion": None} for _ in range(7)]
    with pytest.raises(DataError) as caught:
        convert(*rows)
    assert caught.value.message.splitlines() == [
        "data: 7 of 8 rows cannot be read as prompt_completion:",
        *[f"  row {row}: 'completion' is missing" for row in range(1, 6)],
        "  ... and 2 more",
    ]


def test_unknown_columns_name_the_formats() -> None:
    with pytest.raises(DataError, match=r"no format fits the columns \(question, answer\)") as caught:
        convert({"question": "a", "answer": "b"})
    for name in ("alpaca", "openai", "prompt_completion", "sharegpt"):
        assert f"  {name}: " in caught.value.message


def test_ambiguous_columns() -> None:
    row = {"instruction": "a", "output": "b", "prompt": "c", "completion": "d"}
    with pytest.raises(DataError, match="fit more than one format: alpaca and prompt_completion"):
        convert(row)
    (sample,) = convert(row, layout=Layout("alpaca"))
    assert turns(sample) == [("user", "a"), ("assistant", "b")]


def test_rows_with_images_are_refused_and_counted_wherever_they_stand() -> None:
    text = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}], "images": []}
    image = {**text, "images": ["x.png"]}
    layouts = (None, Layout("openai"), Layout("openai", columns={"messages": "messages"}))
    for rows, layout in itertools.product(([text, image, image, text | {"video": "y"}], [image]), layouts):
        with pytest.raises(DataError) as caught:
            convert(*rows, layout=layout)
        kinds, count = ("images, video", 3) if len(rows) > 1 else ("images", 1)
        lines = str(caught.value).splitlines()
        assert lines[0] == f"data: {count} of {len(rows)} rows have {kinds}; only text is supported:"
        assert lines[1] == f"  row {1 if len(rows) > 1 else 0}: has images"
    (sample,) = convert(
        {"image": "What is it?", "output": "A"}, layout=Layout("alpaca", {"prompt": "image", "response": "output"})
    )
    assert sample.messages[0]["content"] == "What is it?"


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"instruction": "cut \ud83d", "output": "x"}, "instruction"),
        ({"instruction": "a", "output": "x", "id": "\udc00"}, "id"),
        ({"instruction": "a", "output": "x", "task": "\ud83d"}, "task"),
        ({"instruction": "a", "output": "x", "task": {"\ud83d": 1}}, "task"),
        ({"instruction": "a", "output": "x", "\ud83d": 1}, "the name of a column"),
        ({"instruction": "a", "output": "x", "history": [["b", "\ud83d"]]}, "history"),
        ({"instruction": "a", "output": "x", "tools": r'[{"name": "\ud83d"}]'}, "tools"),
    ],
)
def test_a_lone_surrogate_is_a_damaged_row(row: dict[str, Any], what: str) -> None:
    good = {"instruction": "whole \U0001f600", "output": "x"}
    with pytest.raises(DataError, match="1 of 3 rows cannot be read") as caught:
        convert(good, good, row)
    assert f"row 2: {what} holds a lone surrogate (\\ud" in caught.value.message
    with pytest.raises(DataError, match="holds a lone surrogate"):
        convert(row, layout=Layout("alpaca"))


def test_rows_of_several_forms_may_share_their_columns() -> None:
    sharegpt = {"conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}]}
    openai = {"conversations": [{"role": "user", "content": "3"}, {"role": "assistant", "content": "4"}]}
    elsewhere = {"messages": openai["conversations"]}
    alpaca = {"instruction": "5", "output": "6"}
    rows = [sharegpt, openai, elsewhere, alpaca]
    names = {name: None for row in rows for name in row}
    for order in itertools.permutations(rows):
        for made in (list(order), [names | row for row in order]):  # as JSON Lines, and as a table with nulls
            found = [sample.reference for sample in convert(*made)]
            assert found == ["2" if row is sharegpt else "6" if row is alpaca else "4" for row in order]


def test_mapped_columns_leave_out_what_they_do_not_name() -> None:
    row = {"question": "a", "answer": "b", "input": "not asked for"}
    (sample,) = convert(row, layout=Layout(None, {"prompt": "question", "response": "answer"}))
    assert turns(sample) == [("user", "a"), ("assistant", "b")]
    assert sample.metadata == {"input": "not asked for"}


def test_mapped_tags() -> None:
    row = {"dialog": [{"who": "q", "text": "a"}, {"who": "r", "text": "b"}]}
    tags = {"role_tag": "who", "content_tag": "text", "user_tag": "q", "assistant_tag": "r"}
    (sample,) = convert(row, layout=Layout("sharegpt", {"messages": "dialog"}, tags))
    assert turns(sample) == [("user", "a"), ("assistant", "b")]
    with pytest.raises(DataError, match="who 's', expected one of q, r"):
        convert({"dialog": [{"who": "s", "text": "S"}]}, layout=Layout("sharegpt", {"messages": "dialog"}, tags))


def test_mapped_openai_roles() -> None:
    row = {"messages": [{"role": "q", "content": "a"}, {"role": "assistant", "content": "b"}]}
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "q"}
    (sample,) = convert(row, layout=Layout("openai", {"messages": "messages"}, tags))
    assert turns(sample) == [("user", "a"), ("assistant", "b")]


def test_mapping_errors() -> None:
    row = {"question": "a", "answer": "b"}
    with pytest.raises(DataError, match="no row has the mapped column 'anser'; columns: answer, question"):
        convert(row, layout=Layout(None, {"prompt": "question", "response": "anser"}))
    with pytest.raises(DataError, match="unknown key 'promt'") as caught:
        convert(row, layout=Layout(None, {"promt": "question"}))
    assert caught.value.hint == "did you mean 'prompt'?"
    with pytest.raises(DataError, match="rows of plain text, for pretraining, are not supported"):
        convert(row, layout=Layout(None, {"prompt": "question"}))


def test_no_rows() -> None:
    with pytest.raises(DataError, match="there are no rows"):
        convert()


def test_nulls_of_arrow_do_not_reach_the_conversation() -> None:
    rows = [{"tools": [{"name": "f", "parameters": {"a": 1, "b": None}}], "note": None}]
    assert arrow_rows(rows) == [{"tools": [{"name": "f", "parameters": {"a": 1}}], "note": None}]


class _QuestionFormat(DatasetFormat):
    name = "question"
    expects = "q, a"

    def matches(self, columns: set[str], row: Mapping[str, Any]) -> bool:
        return columns == {"q", "a"}

    def to_sample(self, row: Mapping[str, Any], row_index: int, columns: Columns) -> Sample:
        messages = ({"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]})
        return Sample(str(row_index), row_index, messages)


class _Plugin:
    @hookimpl
    def register_dataset_formats(self, register: Register) -> None:
        register("question", f"{__name__}:_QuestionFormat")
        register("broken", "no_such_package:Format")


@pytest.fixture
def with_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = plugins.registry.__wrapped__()
    fresh.add(_Plugin(), plugins.PluginInfo("question", "question-package", "1"))
    monkeypatch.setattr("dataflex.data.rows.registry", lambda: fresh)


@pytest.mark.usefixtures("with_plugin")
def test_a_plugin_format_is_recognised_and_a_broken_one_breaks_nothing() -> None:
    assert recognise({"q": "a", "a": "b"}, "data").name == "question"
    assert turns(convert({"q": "a", "a": "b"})[0]) == [("user", "a"), ("assistant", "b")]
    assert recognise({"prompt": "a", "completion": "b"}, "data").name == "prompt_completion"
    with pytest.raises(DataError, match="broken: dataset_format 'broken' of question-package cannot be imported"):
        recognise({"x": 1}, "data")
