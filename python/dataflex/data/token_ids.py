"""Token ids of texts, by the quickest way that gives what a call of the tokenizer gives.

The tokenizers of the Rust library are asked for ids alone: what ``tokenizer(...)`` gives besides (offsets, masks) took
40 % of the time. Texts are asked for word by word, and a word that was met before is not asked for again:

- A text is cut in front of a space behind a visible ASCII character, and in front of some punctuation or a line feed
  behind an ASCII letter.
- That gives the ids of the whole text with the pre-tokenizers that are known here (:data:`PATTERNS`): none of their
  pre-tokens goes across such a place, where a pre-token ends depends on what follows alone, and a model sees one
  pre-token at a time. Others (SentencePiece has none) are asked for whole texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_WORDS, LONGEST = 1 << 16, 32
"""Words that are kept (some 10 MB) and characters of one: a longer one hardly comes again."""
_CUT = r'!"),.:;?\n'
_WORD = re.compile(rf".[^ {_CUT}]*(?:(?:(?<![!-~]) |(?<![A-Za-z])[{_CUT}])[^ {_CUT}]*)*", re.DOTALL)

_CALLS = ("__call__", "_encode_plus", "_tokenize", "prepare_for_tokenization")
"""What a class of tokenizers may do its own way between a text and the Rust library."""

_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+ENDINGS"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*ENDINGS"
)
_PATHS = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": rf"{_ENDINGS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_ENDINGS}|{_LETTERS}|\p{{N}}|{_REST}",
    "gpt-oss": _CASES.replace("ENDINGS", f"{_ENDINGS}?") + r"|\p{N}{1,3}|" + _PATHS,
    "tekken": _CASES.replace("ENDINGS", "") + r"|\p{N}|" + _PATHS,
}
"""Patterns of pre-tokens: a space, or a line feed behind a letter, only starts one; families that brought them."""


class TokenIds:
    """Asks a tokenizer for the ids of texts.

    Args:
        tokenizer: The tokenizer; tokens that are added later are not known here.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._by_word = _splits_words(tokenizer)
        self._known: dict[str, tuple[int, ...]] = {}

    def of(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without special tokens of its own."""
        if not self._is_plain():
            found: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
            return found
        return self._joined(texts) if self._by_word else self._asked(texts)

    def _is_plain(self) -> bool:
        """Nobody has changed the tokenizer (truncation, padding, its own ``__call__``)."""
        from transformers import PreTrainedTokenizerFast

        tokenizer = self._tokenizer
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        return (
            isinstance(tokenizer, PreTrainedTokenizerFast)
            and all(
                getattr(type(tokenizer), name, None) is getattr(PreTrainedTokenizerFast, name, None) for name in _CALLS
            )
            and (backend.truncation, backend.padding, backend.encode_special_tokens) == (None, None, False)
            and not getattr(tokenizer, "split_special_tokens", False)
        )

    def _asked(self, texts: Sequence[str]) -> list[list[int]]:
        backend: Any = self._tokenizer.backend_tokenizer
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _joined(self, texts: Sequence[str]) -> list[list[int]]:
        known, words = self._known, [_WORD.findall(text) for text in texts]
        unknown = [*set().union(*words).difference(known)]
        known.update(zip(unknown, map(tuple, self._asked(unknown)), strict=True))  # tuples, which the collector skips
        ids = [list(chain.from_iterable(map(known.__getitem__, row))) for row in words]
        for word in unknown:
            if len(word) > LONGEST or len(known) > MAX_WORDS:
                del known[word]
        return ids


def _splits_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text has the ids of its words; see the module."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is None or getattr(backend.model, "dropout", None):
        return False
    whole = all(
        len(_WORD.findall(str(token))) == 1 and not (token.lstrip or token.rstrip or token.single_word)
        for token in tokenizer.added_tokens_decoder.values()
    )
    form = json.loads(backend.pre_tokenizer.__getstate__())
    steps = form["pretokenizers"] if form["type"] == "Sequence" else [form]
    normal = backend.normalizer is None or json.loads(backend.normalizer.__getstate__())["type"] == "NFC"
    return whole and normal and all(map(_is_known, steps)) and any(map(_splits, steps))


def _is_known(step: dict[str, Any]) -> bool:
    """A step that goes by characters, or one of :data:`PATTERNS`."""
    if step["type"] == "ByteLevel":
        return not step["add_prefix_space"]
    return step["type"] == "Digits" or _splits(step)


def _splits(step: dict[str, Any]) -> bool:
    """It splits at the places where words begin."""
    if step["type"] != "Split":
        return bool(step["type"] == "ByteLevel" and step["use_regex"])
    return step["behavior"] == "Isolated" and not step["invert"] and step["pattern"].get("Regex") in PATTERNS.values()
