"""Chat templates: the text, where the labels are, and the ids of prompts."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dataflex.data.collate import IGNORE_INDEX
from dataflex.data.templates import ChatTemplate, template_names
from dataflex.errors import DataError
from dataflex.types import Message, Sample
from helpers.tiny import tiny_tokenizer

MARKS = (
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    *("[INST]", "[/INST]", "[TOOL_CALLS]"),
)
NAMES = template_names()
END = {"llama3": "<|eot_id|>", "qwen": "<|im_end|>", "gemma": "<end_of_turn>", "phi": "<|end|>"}
SPACED = ("default", "mistral", "vicuna")
"""Templates whose answers begin with a space, which the model writes."""

TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
DIALOG: tuple[Message, ...] = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Bye!"},
)
CALLING: tuple[Message, ...] = (
    {"role": "user", "content": "1+2?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}],
    },
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 3."},
)


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    """Knows the special tokens of every family; puts BOS before plain text."""
    return tiny_tokenizer(extra_tokens=MARKS, add_bos=True)


@lru_cache(maxsize=16)
def load(name: str) -> ChatTemplate:
    return ChatTemplate.load(name, tokenizer())


def sample_of(messages: tuple[Message, ...], *, tools: bool = False) -> Sample:
    return Sample("id", 3, messages, (TOOL,) if tools else ())


def labelled(template: ChatTemplate, sample: Sample, vocabulary: PreTrainedTokenizerFast) -> list[str]:
    """The texts of the runs of labels."""
    runs: list[list[int]] = []
    inside = False
    for label in template.encode(sample, 10**6).labels:
        if label != IGNORE_INDEX:
            runs[-1:] = [[*runs[-1], label]] if inside else [*runs[-1:], [label]]
        inside = label != IGNORE_INDEX
    return [vocabulary.decode(run) for run in runs]


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
    assert load(name).render(DIALOG) == GOLDEN[name]


@pytest.mark.parametrize("name", NAMES)
def test_golden_tools(name: str) -> None:
    assert load(name).render(CALLING, (TOOL,)) == GOLDEN_TOOLS[name]


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_the_answers_with_their_end(name: str) -> None:
    end, space = END.get(name, "</s>"), " " if name in SPACED else ""
    assert labelled(load(name), sample_of(DIALOG), tokenizer()) == [f"{space}Hello.{end}", f"{space}Bye!{end}"]


@pytest.mark.parametrize("name", NAMES)
def test_calls_are_labelled(name: str) -> None:
    first, second = labelled(load(name), sample_of(CALLING, tools=True), tokenizer())
    assert '"add"' in first
    assert first.endswith(END.get(name, "</s>"))
    assert second.strip() == "It is 3." + END.get(name, "</s>")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("messages", "tools"), [(DIALOG, False), (CALLING, True)])
def test_ids_and_labels_equal_those_of_transformers(name: str, messages: tuple[Message, ...], tools: bool) -> None:
    template = load(name)
    reference = tokenizer().apply_chat_template(
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
        prompt = load(name).encode_prompt(sample.prompt, sample.tools)
        encoded = load(name).encode(sample, 10**6)
        assert encoded.input_ids[: len(prompt)] == prompt
        assert encoded.labels[len(prompt) - 1] == IGNORE_INDEX
        assert encoded.labels[len(prompt)] != IGNORE_INDEX


@pytest.mark.parametrize("name", NAMES)
def test_bos_comes_once_and_only_where_the_tokenizer_wants_it(name: str) -> None:
    ids = load(name).encode(sample_of(DIALOG), 10**6).input_ids
    assert ids.count(tokenizer().bos_token_id) == 1
    without = tiny_tokenizer(extra_tokens=MARKS)
    template = ChatTemplate.load(name, without)
    assert template.encode(sample_of(DIALOG), 10**6).input_ids == ids[1:]
    assert template.render(DIALOG) == GOLDEN[name].removeprefix("<s>")


@pytest.mark.parametrize("name", NAMES)
def test_stop_tokens(name: str) -> None:
    end = tokenizer().convert_tokens_to_ids(END.get(name, "</s>"))
    assert load(name).stop_token_ids(tokenizer()) == {end, tokenizer().eos_token_id}


def test_turns_without_loss_carry_no_labels() -> None:
    messages = (*DIALOG[:2], {**DIALOG[2], "train": False}, *DIALOG[3:])
    encoded = load("qwen").encode(sample_of(messages), 10**6)
    assert labelled(load("qwen"), sample_of(messages), tokenizer()) == ["Bye!<|im_end|>"]
    assert encoded.input_ids == load("qwen").encode(sample_of(DIALOG), 10**6).input_ids


def test_names_aliases_and_files(tmp_path: Path) -> None:
    assert ChatTemplate.load("chatml", tokenizer()).source == load("qwen").source
    path = tmp_path / "mine.jinja"
    path.write_text(
        "{% for m in messages %}[INST]{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    assert ChatTemplate.load(str(path), tokenizer()).render(DIALOG[1:2]) == "[INST]Hi"
    with pytest.raises(DataError, match="does not exist"):
        ChatTemplate.load(str(tmp_path / "gone.jinja"), tokenizer())
    with pytest.raises(DataError, match="unknown template 'lama3'") as caught:
        ChatTemplate.load("lama3", tokenizer())
    assert caught.value.hint == "did you mean 'llama3'?"


def test_a_tokenizer_without_template() -> None:
    with pytest.raises(DataError, match="has no chat template of its own"):
        ChatTemplate.load(None, tiny_tokenizer())


def test_a_template_of_another_family() -> None:
    with pytest.raises(DataError, match=r"'llama3' ends an answer with '<\|eot_id\|>', which does not begin with"):
        ChatTemplate.load("llama3", tiny_tokenizer())


def test_a_template_that_refuses_names_the_sample() -> None:
    with pytest.raises(DataError, match=r"sample 'id' \(row 3\): template 'gemma' cannot render .*needs? a user turn"):
        load("gemma").encode(sample_of((DIALOG[0], DIALOG[2])), 100)


# --- the tokenizer's own template ---

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_HEADER = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{{ '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED_CONTENT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EOS_AT_THE_END = CHATML.replace("{% endif %}", "{% else %}</s>{% endif %}")
PREFILLED = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
ENDLESS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def own(chat_template: str) -> ChatTemplate:
    return ChatTemplate.load("auto", tiny_tokenizer(chat_template=chat_template))


@pytest.mark.parametrize("source", [CHATML, MARKED_HEADER, MARKED_CONTENT, EOS_AT_THE_END])
def test_own_template_with_and_without_markers(source: str) -> None:
    template = own(source)
    sample = sample_of(DIALOG)
    assert template.name == "auto"
    assert labelled(template, sample, tiny_tokenizer()) == ["Hello.<|im_end|>", "Bye!<|im_end|>"]
    prompt = template.encode_prompt(sample.prompt)
    assert template.encode(sample, 10**6).input_ids[: len(prompt)] == prompt


def test_own_template_that_writes_earlier_turns_differently() -> None:
    assert labelled(own(THINKING), sample_of(DIALOG), tiny_tokenizer()) == [
        "Hello.<|im_end|>",
        "<think>\n\n</think>\n\nBye!<|im_end|>",
    ]


def test_own_template_that_is_not_prefix_stable() -> None:
    with pytest.raises(DataError, match=r"sample 'id' \(row 3\).*renders turns differently once an answer follows"):
        own(PREFILLED).encode(sample_of(DIALOG), 100)


def test_own_template_without_an_end_of_turn() -> None:
    with pytest.raises(DataError, match="ends an answer with nothing"):
        own(ENDLESS)


# --- tokens that reach over a boundary ---


def merging_tokenizer(prepend: str | None = None) -> PreTrainedTokenizerFast:
    """Merges characters across words and lines; ``prepend``: SentencePiece's space in front of the text."""
    backend = Tokenizer(models.BPE())
    if prepend is None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
        backend.decoder = decoders.Metaspace(prepend_scheme=prepend, split=False)
        alphabet = [chr(i) for i in range(10, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(["user\n\n\nassistant\n\n\nParis\n\n\n"] * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )


@pytest.mark.parametrize("prepend", [None, "first", "always"])
def test_a_span_is_cut_out_of_a_token_that_reaches_over_its_start(prepend: str | None) -> None:
    vocabulary = merging_tokenizer(prepend)
    template = ChatTemplate.load("qwen", vocabulary)
    answer = "\n\nParis\n\n"
    sample = sample_of(({"role": "user", "content": "a"}, {"role": "assistant", "content": answer}))
    whole = vocabulary(template.render(sample.messages), add_special_tokens=False)["input_ids"]
    encoded = template.encode(sample, 10**6)
    assert encoded.input_ids != whole  # a token held the header's line break and the answer's first
    labels = [label for label in encoded.labels if label != IGNORE_INDEX]
    assert vocabulary.decode(labels).lstrip(" ") == f"{answer}<|im_end|>"
    prompt = template.encode_prompt(sample.prompt)
    assert encoded.input_ids == prompt + encoded.input_ids[len(prompt) :]
    assert encoded.labels[len(prompt) :].index(IGNORE_INDEX) == len(labels)


# --- truncation ---


def long_sample(prompt_length: int, answer_length: int) -> Sample:
    """The tokenizer knows no pair of z: one token a letter."""
    return sample_of(
        (
            {"role": "user", "content": "z" * prompt_length},
            {"role": "assistant", "content": "z" * answer_length},
        )
    )


@pytest.mark.parametrize(
    ("prompt_length", "answer_length", "labels"),
    [
        (60, 5, 6),  # the answer and its end fit
        (5, 60, None),  # the prompt fits: the answer has the rest
        (60, 60, 20),  # half each
        (60, 19, 20),  # 19 letters and the end
        (60, 21, 20),
    ],
)
def test_cutting_keeps_the_start_of_the_answer(prompt_length: int, answer_length: int, labels: int | None) -> None:
    sample = long_sample(prompt_length, answer_length)
    full = load("qwen").encode(sample, 10**6)
    cut = load("qwen").encode(sample, 40)
    assert (full.truncated, cut.truncated) == (False, True)
    assert len(cut.input_ids) == len(cut.labels) == 40
    kept = [label for label in cut.labels if label != IGNORE_INDEX]
    everything = [label for label in full.labels if label != IGNORE_INDEX]
    assert kept == everything[: len(kept)]
    prompt = load("qwen").encode_prompt(sample.prompt)
    assert len(kept) == (40 - len(prompt) if labels is None else labels)
    assert cut.input_ids[0] == tokenizer().bos_token_id


def test_a_prompt_is_cut_on_the_left() -> None:
    template = load("qwen")
    sample = long_sample(30, 1)
    full = template.encode_prompt(sample.prompt)
    assert template.encode_prompt(sample.prompt, max_length=10) == [full[0], *full[-9:]]
    assert template.encode_prompt(sample.prompt, max_length=len(full)) == full
    assert template.encode_prompt(sample.prompt, max_length=1) == full[-1:]


def test_bos_that_also_marks_turns_is_not_kept() -> None:
    vocabulary = tiny_tokenizer()
    vocabulary.bos_token = "<|im_start|>"
    template = ChatTemplate.load("qwen", vocabulary)
    full = template.encode_prompt(long_sample(30, 1).prompt)
    assert template.encode_prompt(long_sample(30, 1).prompt, max_length=10) == full[-10:]


def test_a_cutoff_too_short_for_prompt_and_answer() -> None:
    assert [label != IGNORE_INDEX for label in load("qwen").encode(long_sample(9, 9), 2).labels] == [False, True]
    with pytest.raises(DataError, match="cutoff_len is 1, expected at least 2"):
        load("qwen").encode(long_sample(9, 9), 1)


# --- properties ---

TEXT = st.text(alphabet=st.sampled_from("abAP .,\n\t?é世#:<|"), max_size=12)


@st.composite
def conversations(draw: st.DrawFn) -> Sample:
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXT)})
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXT)})
        messages.append({"role": "assistant", "content": draw(TEXT), "train": draw(st.booleans())})
    return Sample("id", 0, tuple(messages))


@settings(max_examples=60, deadline=None)
@given(sample=conversations(), name=st.sampled_from(NAMES), cutoff=st.integers(2, 60))
def test_labels_prefix_and_length_hold_for_any_conversation(sample: Sample, name: str, cutoff: int) -> None:
    template = load(name)
    full = template.encode(sample, 10**6)
    assert all(label in (IGNORE_INDEX, token) for token, label in zip(full.input_ids, full.labels, strict=True))
    assert tokenizer().decode(full.input_ids) == template.render(sample.messages)
    prompt = template.encode_prompt(sample.prompt)
    assert full.input_ids[: len(prompt)] == prompt
    answers = [message for message in sample.messages if message["role"] == "assistant" and message.get("train", True)]
    end = tokenizer().convert_tokens_to_ids(END.get(name, "</s>"))
    assert full.labels.count(end) == len(answers)
    cut = template.encode(sample, cutoff)
    kept = [label for label in cut.labels if label != IGNORE_INDEX]
    assert len(cut.input_ids) == len(cut.labels) == min(cutoff, len(full.input_ids))
    assert bool(kept) == bool(answers)
    assert kept == [label for label in full.labels if label != IGNORE_INDEX][: len(kept)]


@settings(max_examples=25, deadline=None)
@given(sample=conversations())
def test_a_template_with_and_without_markers_gives_the_same(sample: Sample) -> None:
    marked, unmarked = own(MARKED_CONTENT), own(CHATML)
    assert marked.encode(sample, 10**6) == unmarked.encode(sample, 10**6)
