"""Chat templates: the text, where the labels are, and the ids of prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.data.templates import ChatTemplate
from dataflex.errors import DataError
from dataflex.testing import tiny_tokenizer
from dataflex.types import Message
from helpers.chats import (
    CALLING,
    DIALOG,
    END,
    MARKS,
    NAMES,
    SPACED,
    TOOL,
    chat_tokenizer,
    labelled,
    load_template,
    sample_of,
)

GOLDEN = {
    "alpaca": (
        "<s>Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.</s>\n\n"
        "### Instruction:\nBye\n\n### Response:\nBye!</s>\n\n"
    ),
    "default": "<s>System: Be brief.\nHuman: Hi\nAssistant: Hello.</s>\nHuman: Bye\nAssistant: Bye!</s>\n",
    "gemma": (
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\nBye!<end_of_turn>\n"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nBye!<|eot_id|>"
    ),
    "mistral": "<s>[INST] Be brief.\n\nHi[/INST] Hello.</s>[INST] Bye[/INST] Bye!</s>",
    "phi": (
        "<s><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello.<|end|>\n"
        "<|user|>\nBye<|end|>\n<|assistant|>\nBye!<|end|>\n"
    ),
    "qwen": (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\nBye!<|im_end|>\n"
    ),
    "vicuna": "<s>Be brief. USER: Hi ASSISTANT: Hello.</s>USER: Bye ASSISTANT: Bye!</s>",
}
PLAIN_TOOLS = (
    'You can call the functions below. To call one, answer with a line of JSON: {"name": "...", "arguments": {...}}\n'
    '{"name": "add", "parameters": {}}'
)
PLAIN_CALL = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
GOLDEN_TOOLS = {
    "alpaca": (
        "<s>Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n{PLAIN_TOOLS}\n\n### Instruction:\n1+2?\n\n### Response:\n{PLAIN_CALL}</s>\n\n"
        "### Instruction:\nFunction result: 3\n\n### Response:\nIt is 3.</s>\n\n"
    ),
    "default": (
        f"<s>System: {PLAIN_TOOLS}\nHuman: 1+2?\nAssistant: {PLAIN_CALL}</s>\n"
        "Human: Function result: 3\nAssistant: It is 3.</s>\n"
    ),
    "gemma": (
        f"<s><start_of_turn>user\n{PLAIN_TOOLS}\n\n1+2?<end_of_turn>\n<start_of_turn>model\n{PLAIN_CALL}<end_of_turn>\n"
        "<start_of_turn>user\nFunction result: 3<end_of_turn>\n<start_of_turn>model\nIt is 3.<end_of_turn>\n"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nEnvironment: ipython\n\n"
        "You have access to the following functions. To call a function, please respond with JSON for a function "
        'call. Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}. '
        f"Do not use variables.\n\n{json.dumps(TOOL, indent=4)}<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n1+2?<|eot_id|>"
        '<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "add", "parameters": {"a": 1, "b": 2}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\n3<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is 3.<|eot_id|>"
    ),
    "mistral": (
        f"<s>[AVAILABLE_TOOLS] [{json.dumps(TOOL)}][/AVAILABLE_TOOLS][INST] 1+2?[/INST]"
        f'[TOOL_CALLS] [{PLAIN_CALL}]</s>[TOOL_RESULTS] {{"content": "3"}}[/TOOL_RESULTS] It is 3.</s>'
    ),
    "phi": (
        f"<s><|system|>\n{PLAIN_TOOLS}<|end|>\n<|user|>\n1+2?<|end|>\n<|assistant|>\n{PLAIN_CALL}<|end|>\n"
        "<|user|>\nFunction result: 3<|end|>\n<|assistant|>\nIt is 3.<|end|>\n"
    ),
    "qwen": (
        "<s><|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        f"{json.dumps(TOOL)}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call><|im_end|>\n<|im_start|>user\n1+2?<|im_end|>\n"
        f"<|im_start|>assistant\n<tool_call>\n{PLAIN_CALL}\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nIt is 3.<|im_end|>\n"
    ),
    "vicuna": (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the user's questions.\n\n{PLAIN_TOOLS} USER: 1+2? ASSISTANT: {PLAIN_CALL}</s>"
        "USER: Function result: 3 ASSISTANT: It is 3.</s>"
    ),
}


def test_every_template_has_a_golden_text() -> None:
    assert NAMES == sorted(GOLDEN) == sorted(GOLDEN_TOOLS)


@pytest.mark.parametrize("name", NAMES)
def test_golden_dialog(name: str) -> None:
    assert load_template(name).render(DIALOG) == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_golden_tools(name: str) -> None:
    assert load_template(name).render(CALLING, (TOOL,)) == GOLDEN_TOOLS[name]


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_the_answers_with_their_end(name: str) -> None:
    end, space = END.get(name, "</s>"), " " if name in SPACED else ""
    assert labelled(load_template(name), sample_of(DIALOG), chat_tokenizer()) == [
        f"{space}Hello.{end}",
        f"{space}Bye!{end}",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_labelled(name: str) -> None:
    first, second = labelled(load_template(name), sample_of(CALLING, tools=True), chat_tokenizer())
    assert '"add"' in first
    assert first.endswith(END.get(name, "</s>"))
    assert second.strip() == "It is 3." + END.get(name, "</s>")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("messages", "tools"), [(DIALOG, False), (CALLING, True)])
def test_ids_and_labels_equal_those_of_transformers(name: str, messages: tuple[Message, ...], tools: bool) -> None:
    template = load_template(name)
    reference = chat_tokenizer().apply_chat_template(
        [dict(message) for message in messages],
        tools=[TOOL] if tools else None,
        chat_template=template.source,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    encoded = template.encode(sample_of(messages, tools=tools), 10**6)
    assert encoded.input_ids == reference["input_ids"]
    assert [int(label != IGNORE_INDEX) for label in encoded.labels] == reference["assistant_masks"]


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_a_prefix(name: str) -> None:
    for messages, tools in ((DIALOG, False), (DIALOG[1:3], False), (CALLING, True)):
        sample = sample_of(messages, tools=tools)
        prompt = load_template(name).encode_prompt(sample.prompt, sample.tools)
        encoded = load_template(name).encode(sample, 10**6)
        assert encoded.input_ids[: len(prompt)] == prompt
        assert encoded.labels[len(prompt) - 1] == IGNORE_INDEX
        assert encoded.labels[len(prompt)] != IGNORE_INDEX


@pytest.mark.parametrize("name", NAMES)
def test_bos_comes_once_and_only_where_the_tokenizer_wants_it(name: str) -> None:
    ids = load_template(name).encode(sample_of(DIALOG), 10**6).input_ids
    assert ids.count(chat_tokenizer().bos_token_id) == 1
    without = tiny_tokenizer(extra_tokens=MARKS)
    template = ChatTemplate.load(name, without)
    assert template.encode(sample_of(DIALOG), 10**6).input_ids == ids[1:]
    assert template.render(DIALOG) == GOLDEN[name].removeprefix("<s>")


@pytest.mark.parametrize("name", NAMES)
def test_stop_tokens(name: str) -> None:
    end = chat_tokenizer().convert_tokens_to_ids(END.get(name, "</s>"))
    assert load_template(name).stop_token_ids(chat_tokenizer()) == {end, chat_tokenizer().eos_token_id}


def test_turns_without_loss_carry_no_labels() -> None:
    messages = (*DIALOG[:2], {**DIALOG[2], "train": False}, *DIALOG[3:])
    encoded = load_template("qwen").encode(sample_of(messages), 10**6)
    assert labelled(load_template("qwen"), sample_of(messages), chat_tokenizer()) == ["Bye!<|im_end|>"]
    assert encoded.input_ids == load_template("qwen").encode(sample_of(DIALOG), 10**6).input_ids


def test_names_aliases_and_files(tmp_path: Path) -> None:
    assert ChatTemplate.load("chatml", chat_tokenizer()).source == load_template("qwen").source
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{% for m in messages %}[INST]{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    assert ChatTemplate.load(str(path), chat_tokenizer()).render(DIALOG[1:2]) == "[INST]Hi"
    with pytest.raises(DataError, match="does not exist"):
        ChatTemplate.load(str(tmp_path / "gone.jinja"), chat_tokenizer())
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"cannot read the template .*mine\.jinja: not UTF-8 text"):
        ChatTemplate.load(str(path), chat_tokenizer())
    with pytest.raises(DataError, match="unknown template 'lama3'") as caught:
        ChatTemplate.load("lama3", chat_tokenizer())
    assert caught.value.hint == "did you mean 'llama3'?"


def test_a_tokenizer_without_template() -> None:
    with pytest.raises(DataError, match="has no chat template of its own"):
        ChatTemplate.load(None, tiny_tokenizer())


def test_a_template_of_another_family() -> None:
    with pytest.raises(DataError, match=r"'llama3' ends an answer with '<\|eot_id\|>', which does not begin with"):
        ChatTemplate.load("llama3", tiny_tokenizer())


def test_a_template_that_refuses_names_the_sample() -> None:
    with pytest.raises(DataError, match=r"sample 'id' \(row 3\): template 'gemma' cannot render .*needs? a user turn"):
        load_template("gemma").encode(sample_of((DIALOG[0], DIALOG[2])), 100)
