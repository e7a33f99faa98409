"""Conversations, and a tokenizer that knows the marks of every template family."""

from __future__ import annotations

from functools import lru_cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.data.template_names import template_names
from dataflex.data.templates import ChatTemplate
from dataflex.testing import tiny_tokenizer
from dataflex.types import Message, Sample

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
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Knows the special tokens of every family; puts BOS before plain text."""
    return tiny_tokenizer(extra_tokens=MARKS, add_bos=True)


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


@lru_cache(maxsize=16)
def load_template(name: str) -> ChatTemplate:
    return ChatTemplate.load(name, chat_tokenizer())


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
