"""What stands out in rows is counted and said; what templates read of a turn reaches them."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from dataflex.data.dataset import TokenizedDataset, tokenize
from dataflex.data.sources import load_samples
from dataflex.data.templates import ChatTemplate
from dataflex.errors import DataError
from dataflex.testing import tiny_tokenizer
from helpers.chats import TOOL, chat_tokenizer, labelled, load_template

REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}<think>{{ m.reasoning_content or '' }}</think>{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STRICT_TOOLS = (
    "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'tool' and (m.tool_call_id is not defined or m['name'] is not defined) %}"
    "{{ raise_exception('a result needs tool_call_id') }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.id }} {{ c.function.name }}{% endfor %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WHOLE_TURN = "{% for m in messages %}{{ m | tojson }}{{ m.content }}<|im_end|>{% endfor %}"


def own(source: str) -> ChatTemplate:
    return ChatTemplate.load(None, tiny_tokenizer(chat_template=source))


def row(answer: Any, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "12*11?"}, {"role": "assistant", "content": answer, **keys}]}


def tokenised(rows: list[dict[str, Any]], template: ChatTemplate, cutoff: int = 4096) -> TokenizedDataset:
    return tokenize(load_samples(rows), template, cutoff, progress=False, name="training set")


def notes(rows: list[dict[str, Any]], template: ChatTemplate, cutoff: int = 4096) -> dict[str, int]:
    return dict(tokenised(rows, template, cutoff).report.notes)


def test_keys_that_a_template_reads_reach_it() -> None:
    template = own(REASONING)
    (sample,) = load_samples([row("132", reasoning_content="120 plus 12")])
    assert labelled(template, sample, tiny_tokenizer()) == ["<think>120 plus 12</think>132<|im_end|>"]
    assert template.encode(sample, 100).notes == ()


def test_keys_that_a_template_does_not_read_are_counted() -> None:
    rows = [
        row("132", reasoning_content="120 plus 12", rating=5),
        row("1", rating=None),
        row("2", reasoning_content=""),
    ]
    assert notes(rows, load_template("qwen")) == {
        "'rating' in an assistant turn, which the template does not read": 1,
        "'reasoning_content' in an assistant turn, which the template does not read": 1,
    }
    assert notes(rows, own(WHOLE_TURN)) == {}  # a template that writes whole turns reads all keys


def test_ids_and_names_of_calls_and_results_reach_the_template() -> None:
    call = {"id": "aB3dE6gH9", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    turns = [
        {"role": "user", "content": "1+2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "aB3dE6gH9", "name": "add", "content": "3"},
        {"role": "assistant", "content": "It is 3."},
    ]
    template = own(STRICT_TOOLS)
    (sample,) = load_samples([{"messages": turns, "tools": [TOOL]}])
    assert labelled(template, sample, tiny_tokenizer()) == ["aB3dE6gH9 add<|im_end|>", "It is 3.<|im_end|>"]
    assert template.encode(sample, 10**6).notes == ()


def test_typed_parts_of_an_answer() -> None:
    parts = [
        {"type": "reasoning", "value": "120 "},
        {"type": "thinking", "thinking": "plus 12"},
        {"type": "text", "value": "It is"},
        {"type": "text", "text": " 132"},
        {"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
    ]
    (sample,) = load_samples([row(parts)])
    assert sample.messages[1] == {
        "role": "assistant",
        "content": "It is 132",
        "reasoning_content": "120 plus 12",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}],
    }


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        ([{"type": "image", "image": "x"}], "part of type 'image'; only text, reasoning, thinking, tool_call parts"),
        ([{"type": "reasoning"}], "reasoning part without 'text' or 'value'"),
        ([{"type": "tool_call"}], "tool_call part without 'value'"),
        (["text"], "has a part 'text', expected an object"),
    ],
)
def test_parts_that_cannot_be_read(answer: Any, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        load_samples([row(answer)])
    with pytest.raises(DataError, match="reasoning parts and another reasoning_content"):
        load_samples([row([{"type": "reasoning", "value": "a"}], reasoning_content="b")])


def test_train_takes_an_answer_out_of_the_loss() -> None:
    (sample,) = load_samples([row("132", train=False)])
    assert sample.messages[1] == {"role": "assistant", "content": "132", "train": False}
    with pytest.raises(DataError, match="has train 'no', expected true or false"):
        load_samples([row("132", train="no")])


def test_empty_answers_and_placeholders_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        *(row(answer) for answer in ("", " \n", "I am {{name}}.", "Made by {{ author.name }}", "132")),
        row("", train=False),
        row("", tool_calls=[{"name": "add"}]),
        row(r"\frac{{a}}{2}, x^{{nn}}, {{{x}}}, {{ 1 }}"),
    ]
    with caplog.at_level(logging.WARNING, "dataflex"):
        report = tokenised(rows, load_template("qwen")).report
    assert caplog.messages == [f"training set: {line}" for line in report.warnings()]
    assert report.warnings() == [
        "2 of 7 rows have an empty answer (no text, or white space only), which teaches the model to end at once",
        "2 of 7 rows have a placeholder such as {{name}} in an answer, which is learnt as it stands",
    ]


def test_functions_whose_definitions_were_cut_are_counted() -> None:
    long = "z" * 2000
    rows = [
        {**row("132"), "tools": [TOOL], "id": "whole"},
        {"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "132"}], "tools": [TOOL]},
        {"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "132"}]},
        {**row(long), "tools": [TOOL]},
    ]
    template = load_template("qwen")
    length = len(template.encode_prompt(load_samples([rows[0]])[0].prompt, [TOOL]))
    note = "functions, and a prompt that lost its beginning to cutoff_len, where templates define them"
    assert [note in example.notes for example in tokenised(rows, template, 2 * length)] == [False, True, False, False]


def test_many_kinds_of_notes_are_cut_short() -> None:
    report = tokenised([row("1", **{f"key{number:02}": 1}) for number in range(12)], load_template("qwen")).report
    assert len(report.notes) == 12
    assert report.warnings()[9:] == [
        "1 of 12 rows have 'key09' in an assistant turn, which the template does not read",
        "... and 2 more kinds of such findings",
    ]


def test_all_rows_that_a_template_refuses_are_counted() -> None:
    odd = {"messages": [{"role": "system", "content": "S"}, {"role": "assistant", "content": "A"}]}
    with pytest.raises(DataError) as caught:
        tokenised([row("1"), *([odd] * 300), row("2")], load_template("gemma"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "300 of 302 samples cannot be rendered with template 'gemma':"
    assert lines[1].startswith("  sample '1' (row 1): template 'gemma' cannot render the conversation: a system text")
    assert lines[6:] == [
        "  ... and 295 more",
        "  hint: correct or remove these rows, or choose another template",
    ]


def test_an_error_inside_a_template_is_one_of_the_row() -> None:
    template = own(REASONING.replace("{{ m.content }}", "{{ m.content }}{{ '' if m.content != 'x' else 1 // 0 }}"))
    with pytest.raises(DataError, match=r"(?s)1 of 2 samples.*sample '1' \(row 1\).*division"):
        tokenised([row("1"), row("x")], template)


def test_templates_that_fit_are_named_first() -> None:
    with pytest.raises(DataError, match="ends an answer with") as caught:
        ChatTemplate.load("llama3", tiny_tokenizer(chat_template=REASONING))
    assert str(caught.value.hint).startswith("templates that fit this tokenizer: null, chatml, alpaca, default")
    assert "llama3" not in str(caught.value.hint)
    assert "gemma" in str(own_hint(chat_tokenizer()))


def own_hint(tokenizer: Any) -> str | None:
    with pytest.raises(DataError, match="no chat template of its own") as caught:
        ChatTemplate.load(None, tokenizer)
    return caught.value.hint
