"""The quick ways to token ids give what the plain way gives: each part from the start of the text, by a call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from dataflex.data import encoding, token_ids
from dataflex.data.encoding import special_tokens
from dataflex.data.templates import ChatTemplate
from dataflex.data.token_ids import TokenIds
from dataflex.testing import tiny_tokenizer
from dataflex.types import Message, Sample
from helpers.chats import DIALOG, NAMES, chat_tokenizer, merging_tokenizer, sample_of

TOKENIZERS = {
    "chat": chat_tokenizer,
    "tiny": tiny_tokenizer,
    "merging": merging_tokenizer,
    "first": lambda: merging_tokenizer("first"),
    "always": lambda: merging_tokenizer("always"),
}


class PlainCalls(PreTrainedTokenizerFast):
    """A tokenizer whose class has a word in every call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def plainly(name: str, tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """The template without any of the quick ways."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "splitting", lambda *_: {})
        plain = PlainCalls(
            tokenizer_object=tokenizer.backend_tokenizer,
            **{key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)},
        )
        return ChatTemplate.load(name, plain)


def pairs() -> Iterator[tuple[str, str]]:
    yield from (("chat", name) for name in NAMES)
    yield from ((kind, "qwen") for kind in TOKENIZERS)


PARTS = st.sampled_from(
    ["a", "\n\n", " ", "<s>", "<|im_end|>", "<|im_start|>assistant\n", "Paris", "user", "é", "[INST]"]
)
TEXTS = st.lists(PARTS, max_size=6).map("".join)


@pytest.mark.parametrize(("kind", "name"), sorted(set(pairs())))
@settings(max_examples=15)
@given(texts=st.lists(TEXTS, min_size=2, max_size=6), cutoff=st.integers(2, 60))
def test_quick_and_plain_agree(kind: str, name: str, texts: list[str], cutoff: int) -> None:
    tokenizer = TOKENIZERS[kind]()
    turns: list[Message] = [
        {"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)
    ]
    samples = [sample_of(tuple(turns[:2])), sample_of(tuple(turns[: len(turns) // 2 * 2])), sample_of(DIALOG)]
    quick, plain = ChatTemplate.load(name, tokenizer), plainly(name, tokenizer)
    for length in (cutoff, 10**6):
        assert quick.encode_batch(samples, length) == plain.encode_batch(samples, length)
    assert quick.encode_prompt(samples[1].prompt) == plain.encode_prompt(samples[1].prompt)


def test_no_text_is_encoded_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a boundary the text goes on from the last special token, not from the start."""
    template = ChatTemplate.load("qwen", tiny_tokenizer())
    asked: list[str] = []
    ids_of = TokenIds.of
    monkeypatch.setattr(TokenIds, "of", lambda self, texts: asked.extend(texts) or ids_of(self, texts))
    long: tuple[Message, ...] = (
        {"role": "user", "content": "word " * 500},
        {"role": "assistant", "content": "b" * 500},
    )
    template.encode(Sample("a", 0, long), 10**6)
    assert sum(text.count("word") for text in asked) == 500
    assert sum(text.count("b") for text in asked) == 500


def test_only_tokens_that_always_split_are_started_from() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>x", "[sep]"]})
    wanted = [*special_tokens(tokenizer).values()]
    found = token_ids.splitting(tokenizer, wanted)
    assert {"[sep]", "<|im_end|>"} <= found.keys()
    assert "<|im_start|>" not in found  # the text may be the beginning of the longer one
    assert found["[sep]"] == tokenizer.convert_tokens_to_ids("[sep]")
