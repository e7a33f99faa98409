"""Token ids of texts, by the quickest way that gives what a call of the tokenizer gives.

The tokenizers of the Rust library are asked for ids alone: what ``tokenizer(...)`` gives besides (offsets, masks) took
40 % of the time. Texts are asked for word by word, and a word that was met before is not asked for again:

- A text is cut in front of a space behind a visible ASCII character, and in front of some punctuation or a line feed
  behind an ASCII letter.
- That gives the ids of the whole text with the pre-tokenizers that are known here (:data:`PATTERNS`): none of their
  pre-tokens goes across such a place, where a pre-token ends depends on what follows alone, and a model sees one
  pre-token at a time. Others (SentencePiece has none) are asked for whole texts.
- What stands between two spaces is put together of its words once, so that most texts are only cut at spaces.
- New words are asked for many at a time, with a token between them that splits every text.

Ids are bytes of int32 until they are those of a text: joining these is quicker than handling numbers.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INT32: Final = "i"
"""Type code of arrays of ids."""

MAX_WORDS, LONGEST = 1 << 16, 32
"""Words that are kept, and pieces between spaces (some 10 MB each), and characters of one: a longer one hardly comes
again."""
TOGETHER = 64
"""New words that are asked for as one text."""
_CUT = r'!"),.:;?\n'
_VISIBLE = frozenset(map(chr, range(ord("!"), ord("~") + 1)))  # [!-~], behind which a text may be cut at a space
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
        self._separator = _separator(tokenizer)
        self._known: dict[str, bytes] = {}
        # What stands in a text before its first space, between two, behind the last.
        self._first, self._middle, self._last = _Pieces(""), _Pieces(" "), _Pieces(" ", before_space=False)

    def of(self, texts: Sequence[str]) -> list[array[int]]:
        """The ids of each text (int32), without special tokens of its own."""
        if not self._is_plain():
            found: Any = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
            return [array(INT32, ids) for ids in found]
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

    def _asked(self, texts: Sequence[str]) -> list[array[int]]:
        backend: Any = self._tokenizer.backend_tokenizer
        return [array(INT32, encoding.ids) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _asked_together(self, words: Sequence[str]) -> Iterator[bytes]:
        if self._separator is None:
            yield from map(bytes, self._asked(words))
            return
        token, number = self._separator
        groups = [words[start : start + TOGETHER] for start in range(0, len(words), TOGETHER)]
        for group, ids in zip(groups, self._asked([token.join(group) for group in groups]), strict=True):
            found = _split(ids, number)
            yield from found if len(found) == len(group) else map(bytes, self._asked(group))  # a word has the token

    def _joined(self, texts: Sequence[str]) -> list[array[int]]:
        split = [text.split(" ") for text in texts]
        several = [pieces for pieces in split if len(pieces) > 1]
        self._first.note(pieces[0] for pieces in several)
        self._middle.note(chain.from_iterable(pieces[1:-1] for pieces in several))
        self._last.note(pieces[-1] for pieces in several)
        tables = (self._first, self._middle, self._last)
        with self._words(chain.from_iterable(words for table in tables for words in table.words.values())) as known:
            for table in tables:
                table.learn(known)
        ids, others = [], []
        for text, pieces in zip(texts, split, strict=True):
            try:
                first, *middle, last = pieces
                inner = map(self._middle.ids.__getitem__, middle)
                ids.append(array(INT32, b"".join((self._first.ids[first], *inner, self._last.ids[last]))))
            except (KeyError, ValueError):  # white space of another kind, letters that are not ASCII, a single piece
                others.append((len(ids), _WORD.findall(text)))
                ids.append(array(INT32))
        with self._words(chain.from_iterable(words for _, words in others)) as known:
            for place, words in others:
                ids[place].frombytes(b"".join(map(known.__getitem__, words)))
        for table in tables:
            table.forget()
        return ids

    @contextmanager
    def _words(self, words: Iterable[str]) -> Iterator[dict[str, bytes]]:
        """The ids of words, of which not all are kept when the block ends."""
        unknown = [*set(words).difference(self._known)]
        self._known.update(zip(unknown, self._asked_together(unknown), strict=True))
        yield self._known
        _forget(self._known, unknown)


class _Pieces:
    """Ids of pieces of texts between spaces.

    Args:
        before: What stands in front of each.
        before_space: A space follows, at which a text may be cut behind some characters alone.

    Attributes:
        ids: Ids by piece.
        words: Words of new pieces.
    """

    def __init__(self, before: str, *, before_space: bool = True) -> None:
        self._before, self._before_space = before, before_space
        self.ids: dict[str, bytes] = {}
        self.words: dict[str, list[str]] = {}

    def note(self, pieces: Iterable[str]) -> None:
        """Cut pieces that are new into words."""
        new = set(pieces).difference(self.ids)
        self.words = {
            piece: _WORD.findall(self._before + piece)
            for piece in new
            if not self._before_space or piece[-1:] in _VISIBLE
        }

    def learn(self, known: Mapping[str, bytes]) -> None:
        """Put the ids of the new pieces together."""
        self.ids.update((piece, b"".join(map(known.__getitem__, words))) for piece, words in self.words.items())

    def forget(self) -> None:
        """Keep some of the new pieces."""
        _forget(self.ids, self.words)


def _forget(ids: dict[str, bytes], new: Iterable[str]) -> None:
    for text in new:
        if len(text) > LONGEST or len(ids) > MAX_WORDS:
            del ids[text]


def _split(ids: array[int], separator: int) -> list[bytes]:
    """The bytes of what stands between separators."""
    raw, size = ids.tobytes(), ids.itemsize
    places = np.flatnonzero(np.frombuffer(ids, dtype=np.int32) == separator)
    ends = [*(size * places).tolist(), len(raw)]
    return [raw[start:end] for start, end in zip([0, *(end + size for end in ends[:-1])], ends, strict=True)]


def splitting(tokenizer: PreTrainedTokenizerBase, wanted: Iterable[str]) -> dict[str, int]:
    """Those of some tokens that split every text in which they stand, each with its id.

    They take no white space with them, and no other added token overlaps them, so that each occurrence is the token.
    """
    added = {str(token): (number, token) for number, token in tokenizer.added_tokens_decoder.items()}
    found = {}
    for text in set(wanted) & added.keys():
        number, token = added[text]
        particular = token.lstrip or token.rstrip or token.single_word or token.normalized
        if not particular and not any(_overlap(text, other) for other in added.keys() - {text}):
            found[text] = int(number)
    return found


def _overlap(text: str, other: str) -> bool:
    """Whether two tokens can share characters of a text."""
    return _ends_alike(text, other) or text in other or other in text


def _ends_alike(text: str, other: str) -> bool:
    """Whether one of them can end where the other begins."""
    lengths = range(1, min(len(text), len(other)))
    return any(text[-n:] == other[:n] or other[-n:] == text[:n] for n in lengths)


def _separator(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int] | None:
    """A token to put between words, with its id."""
    tokens = splitting(tokenizer, map(str, tokenizer.added_tokens_decoder.values()))
    found = ((text, number) for text, number in tokens.items() if not _ends_alike(text, text))
    return min(found, key=lambda it: (len(it[0]), it[0]), default=None)


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
