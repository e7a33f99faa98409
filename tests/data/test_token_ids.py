"""Ids by words that were met before are those of a call of the tokenizer."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import PreTrainedTokenizerFast

from dataflex.data import token_ids
from dataflex.data.token_ids import PATTERNS, TokenIds
from dataflex.testing import tiny_tokenizer
from helpers.chats import merging_tokenizer

BYTES = pre.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre.ByteLevel(add_prefix_space=False)
UNITS = [
    *("a", "B", "le", "the", "'s", "'LL", "12", "7", "_", "/", "-"),
    *(" ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\x1c", "\x00"),
    *('!"', ")", ",", ".", ":", ";", "?", "[", "<|im_end|>", "<|end|>"),
    *("\u00e9", "e\u0301", "\u0301", "\u4e2d\u6587", "\u0395", "\u01c5", "\u0663", "\u00bd", "\ud7ff", "\U0001f642"),
]
TEXTS = st.lists(st.lists(st.sampled_from(UNITS), max_size=12).map("".join), min_size=1, max_size=5)


def trained(
    split: Any, normalizer: Any = None, tokens: tuple[AddedToken, ...] = (), texts: list[str] | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer that joins what its pre-tokens leave together: in all pairs of parts, or in ``texts``."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = split
    if normalizer is not None:
        backend.normalizer = normalizer
    parts = [unit for unit in UNITS if "|" not in unit]
    trainer = trainers.BpeTrainer(
        vocab_size=2500, initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False, min_frequency=1
    )
    backend.train_from_iterator(texts or [f"{one}{other}" for one in parts for other in parts], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|end|>", *tokens]})
    return tokenizer


@cache
def family(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer that splits as one of a family does."""
    if name == "smollm2":
        return trained(pre.Sequence([pre.Digits(individual_digits=True), GPT2]))
    if name == "built in":
        return trained(GPT2)
    split = pre.Split(Regex(PATTERNS[name]), "isolated")
    return trained(pre.Sequence([split, BYTES]), normalizers.NFC() if name == "qwen2" else None)


@cache
def remembering(name: str) -> TokenIds:
    """What has met the texts of other tests."""
    return TokenIds(family(name))


def of(ids: TokenIds, texts: list[str]) -> list[list[int]]:
    return [found.tolist() for found in ids.of(texts)]


def called(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize("name", ["built in", "smollm2", *PATTERNS])
@settings(max_examples=100)
@given(texts=TEXTS)
def test_ids_by_words_are_those_of_whole_texts(name: str, texts: list[str]) -> None:
    tokenizer = family(name)
    ids = TokenIds(tokenizer)
    assert ids._by_word
    for own in (ids, ids, remembering(name)):  # the second time from memory
        assert of(own, texts) == called(tokenizer, texts)


@pytest.mark.parametrize("place", ["le the", "le,\n", "le\nle", "the.", "le\n\n", "12 7", ")  !"])
def test_places_where_texts_are_cut_matter(place: str) -> None:
    """What the test above relies on: without pre-tokens a token may go across, and words are not asked for."""
    tokenizer = trained(BYTES, texts=[place])
    words = token_ids._WORD.findall(place)
    assert len(words) > 1
    assert "".join(words) == place
    assert len(called(tokenizer, [place])[0]) == 1
    assert of(TokenIds(tokenizer), [place]) == called(tokenizer, [place])


def loose(**options: bool) -> PreTrainedTokenizerFast:
    return trained(GPT2, tokens=(AddedToken("<t>", **options),))


@pytest.mark.parametrize(
    "tokenizer",
    [
        *(merging_tokenizer(), merging_tokenizer("first"), merging_tokenizer("always")),
        *(loose(lstrip=True), loose(rstrip=True), loose(single_word=True)),
        trained(GPT2, tokens=(AddedToken("end of", special=True),)),
        trained(GPT2, tokens=(AddedToken("x.y", special=True),)),
        *(trained(pre.ByteLevel(add_prefix_space=True)), trained(BYTES), trained(GPT2, normalizers.NFKC())),
        trained(pre.Sequence([pre.Split(Regex(PATTERNS["gpt2"]), "removed"), BYTES])),
        trained(pre.Sequence([pre.Split(Regex(r"\w+ \w+"), "isolated"), GPT2])),
    ],
)
def test_others_are_asked_for_whole_texts(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = TokenIds(tokenizer)
    texts = ["le the <t> end of x.y", "le <t>, the\n\n ", " a"]
    assert not ids._by_word
    assert of(ids, texts) == called(tokenizer, texts)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ((AddedToken("<|t|>", special=True),), "<|t|>"),
        ((AddedToken("o-o", special=True),), "<|end|>"),  # in "o-o-o" it begins earlier than behind a word "o-"
        ((AddedToken("<|t|>", special=True), AddedToken("|><|", special=True)), None),
        ((AddedToken("<t>", normalized=True),), "<|end|>"),
    ],
)
def test_new_words_are_asked_for_with_a_token_between_them(
    tokens: tuple[AddedToken, ...], expected: str | None
) -> None:
    tokenizer = trained(GPT2, tokens=tokens)
    ids = TokenIds(tokenizer)
    assert (ids._separator and ids._separator[0]) == expected
    texts = ["le o- the o-o", f"a {expected or 'le'} b<|end|", "<|t|><|t|>, " * 3] + [f"w{n}" for n in range(200)]
    assert of(ids, texts) == called(tokenizer, texts)


def test_a_tokenizer_that_drops_merges_at_random_is_asked_each_time() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.model.dropout = 0.5
    assert not TokenIds(tokenizer)._by_word


def test_a_tokenizer_that_was_changed_is_called_as_it_is() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["a b c d e f", "a"]
    plain, ids = called(tokenizer, texts), TokenIds(tokenizer)
    assert of(ids, texts) == plain
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert of(ids, texts) == plain  # transformers pads only where it is asked to
    tokenizer.backend_tokenizer.enable_truncation(2)
    assert of(ids, texts) == plain


def test_words_are_kept_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_ids, "MAX_WORDS", 3)
    tokenizer = tiny_tokenizer()
    ids = TokenIds(tokenizer)
    texts = ["one two three four five", "x" * 40 + " one"]
    assert of(ids, texts) == called(tokenizer, texts)
    assert len(ids._known) <= 3
    assert all(len(word) <= token_ids.LONGEST for word in ids._known)
    for pieces in (ids._first, ids._middle, ids._last):
        assert len(pieces.ids) <= 3
    assert of(ids, texts[::-1]) == called(tokenizer, texts[::-1])
