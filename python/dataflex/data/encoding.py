"""Token ids of rendered text with exact boundaries, and the labels on them.

Both ends of a span (where the assistant speaks) are token boundaries. The text is tokenised as a whole, up to each
boundary in turn; where the tokenizer would merge characters across a boundary, the text behind it is tokenised on its
own. So labels are exact, and the ids of a prompt are a prefix of the ids of prompt and answer, as they are in
generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""Label of a position that carries no loss; torch's cross-entropy ignores it by default."""

Span = tuple[int, int]
"""Where in a text something starts, and where it ends."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised conversation.

    Attributes:
        input_ids: t token ids.
        labels: t labels: the token's id in the assistant's spans, else -100. The first is always -100, since nothing
            predicts it.
        truncated: Tokens were cut to fit ``cutoff_len``.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool


class SpanEncoder:
    """Tokenises texts so that the ends of their spans are token boundaries.

    Args:
        tokenizer: The tokenizer.
        end_of_turn: The special token behind an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_of_turn: str) -> None:
        self._tokenizer = tokenizer
        self._end = end_of_turn
        self._separator = _separating_token(tokenizer)

    def encode(self, text: str, spans: list[Span]) -> list[int]:
        """Token ids of a text with these spans, whole."""
        return self._tokens([(text, spans)])[0][0]

    def encode_batch(self, texts: Sequence[tuple[str, list[Span], list[Span]]], cutoff_len: int) -> list[Encoded]:
        """Tokenise texts; the tokenizer works on all of them at once, with its own threads.

        Args:
            texts: Each with all its spans, and those that carry labels.
            cutoff_len: Greatest number of tokens: more are cut, see :meth:`dataflex.ChatTemplate.encode_batch`.
        """
        encoded = []
        for (ids, position), (_, _, trained) in zip(
            self._tokens([(text, spans) for text, spans, _ in texts]), texts, strict=True
        ):
            labels = [IGNORE_INDEX] * len(ids)
            for start, end in trained:
                labels[position[start] : position[end]] = ids[position[start] : position[end]]
            if labels:
                labels[0] = IGNORE_INDEX
            encoded.append(self._cut(ids, labels, cutoff_len))
        return encoded

    def _tokens(self, texts: Sequence[tuple[str, list[Span]]]) -> list[tuple[list[int], dict[int, int]]]:
        """Token ids of each text, and the number of tokens before each end of its spans."""
        plans = [self._pieces(text, spans) for text, spans in texts]
        pieces = [text[start:end] for (text, _), plan in zip(texts, plans, strict=True) for start, end in plan]
        ids = iter(self._tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"])
        return [self._joined(text, plan, ids) for (text, _), plan in zip(texts, plans, strict=True)]

    def _pieces(self, text: str, spans: Sequence[Span]) -> list[Span]:
        """The part of ``text`` up to each end of a span, from the last end-of-turn token on.

        A special token splits the text for every tokenizer, so nothing before it needs to be tokenised again: the
        work is linear in the text.
        """
        pieces = []
        anchor = 0
        for cut in [*sorted({place for span in spans for place in span} - {len(text)}), len(text)]:
            pieces.append((anchor, cut))
            if text.endswith(self._end, anchor, cut):
                anchor = cut - len(self._end)
        return pieces

    def _joined(self, text: str, plan: list[Span], pieces: Iterator[list[int]]) -> tuple[list[int], dict[int, int]]:
        """Ids of the whole text from the ids of its ``plan``; see the module's docstring."""
        done: list[int] = []
        tail: list[int] = []
        position: dict[int, int] = {}
        anchor = last = 0
        for start, cut in plan:
            if start != anchor:
                done, tail, anchor = done + tail[:-1], tail[-1:], start
            piece = next(pieces)
            tail = piece if piece[: len(tail)] == tail else tail + self._ids_behind(text[last:cut])
            last = cut
            position[cut] = len(done) + len(tail)
        return done + tail, position

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _ids_behind(self, text: str) -> list[int]:
        """Ids of text that goes on behind other text: no token for the start of a text (SentencePiece's space)."""
        return self._ids(self._separator + text)[1:] if self._separator else self._ids(text)

    def _cut(self, ids: list[int], labels: list[int], cutoff_len: int) -> Encoded:
        if len(ids) <= cutoff_len:
            return Encoded(ids, labels, truncated=False)
        labelled = (i for i, label in enumerate(labels) if label != IGNORE_INDEX)
        start = next(labelled, len(ids))
        kept = min(len(ids) - start, max(cutoff_len - start, cutoff_len - cutoff_len // 2))
        prompt = self.cut_left(ids[:start], cutoff_len - kept)
        answer = slice(start, start + kept)
        return Encoded(prompt + ids[answer], [IGNORE_INDEX] * len(prompt) + labels[answer], truncated=True)

    def cut_left(self, ids: list[int], length: int) -> list[int]:
        """The last ``length`` ids; a BOS in front stays (not where BOS is also a mark of turns, as in SmolLM2)."""
        if len(ids) <= length:
            return ids
        bos = self._tokenizer.bos_token_id
        if length > 1 and ids[0] == bos and bos not in ids[1:]:
            return [ids[0], *ids[len(ids) - length + 1 :]]
        return ids[len(ids) - length :]


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens that split the text before it is tokenised: id to text, special ones first."""
    added = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    special = {int(i): str(tokenizer.convert_ids_to_tokens(i)) for i in tokenizer.all_special_ids}
    return special | added


def _separating_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """A special token that leaves the white space behind it alone."""
    decoder = tokenizer.added_tokens_decoder
    found = special_tokens(tokenizer).items()
    return next((token for i, token in found if i in decoder and not decoder[i].rstrip), None)
