"""Token ids of rendered text with exact boundaries, and the labels on them.

Both ends of a span (where the assistant speaks) are token boundaries. The text is tokenised as a whole, up to each
boundary in turn; where the tokenizer would merge characters across a boundary, the text behind it is tokenised on its
own. So labels are exact, and the ids of a prompt are a prefix of the ids of prompt and answer, as they are in
generation.

Further boundaries lie inside text of rows that reads like a control token (:mod:`dataflex.data.quoting`): the text
behind such a boundary is tokenised on its own, so that it stays text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from dataflex.data.token_ids import INT32, TokenIds, splitting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""Label of a position that carries no loss; torch's cross-entropy ignores it by default."""

Span = tuple[int, int]
"""Where in a text, or among its tokens, something starts, and where it ends."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a conversation.

    Attributes:
        text: What the template wrote.
        spans: Where in it the assistant speaks.
        trained: The spans of the turns that carry loss.
        cuts: Places inside text of the row that reads like a control token.
        notes: What stands out in the row, see :mod:`dataflex.data.notes`.
    """

    text: str
    spans: list[Span]
    trained: list[Span]
    cuts: list[int]
    notes: tuple[str, ...] = ()


class _Piece(NamedTuple):
    """A part of a text that is tokenised at once.

    ``behind``: it goes on where other tokens end; ``token``: it starts with this special token.
    """

    start: int
    end: int
    behind: bool
    token: str | None


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenised conversation.

    Attributes:
        ids: t token ids, int32.
        learnt: The tokens that carry loss: those of the assistant's spans, but not the first of all, which nothing
            predicts. In order; something is between one span and the next.
        truncated: Tokens were cut to fit ``cutoff_len``.
        prompt_cut: Some of them stood before the first label.
        notes: What stands out in the row, see :mod:`dataflex.data.notes`.
    """

    ids: array[int]
    learnt: tuple[Span, ...]
    truncated: bool
    prompt_cut: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, input_ids: Sequence[int], labels: Sequence[int], truncated: bool, notes: tuple[str, ...]) -> Encoded:
        """What has these ids and labels, each -100 or the token's own id; one of the first token stays."""
        runs = groupby(range(len(labels)), key=lambda place: labels[place] != IGNORE_INDEX)
        learnt = [[*places] for carries_loss, places in runs if carries_loss]
        spans = tuple((places[0], places[-1] + 1) for places in learnt)
        return cls(array(INT32, input_ids), spans, truncated, notes=notes)

    @property
    def input_ids(self) -> list[int]:
        """The t token ids."""
        return self.ids.tolist()

    @property
    def labels(self) -> list[int]:
        """The t labels: the token's id where it carries loss, else -100."""
        labels = [IGNORE_INDEX] * len(self.ids)
        for start, end in self.learnt:
            labels[start:end] = self.ids[start:end]
        return labels


class SpanEncoder:
    """Tokenises texts so that the ends of their spans are token boundaries.

    Args:
        tokenizer: The tokenizer.
        end_of_turn: The special token behind an answer.
        control: Special tokens that stand around turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_of_turn: str, control: Iterable[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._token_ids = TokenIds(tokenizer)
        self._end = end_of_turn
        self._anchors = splitting(tokenizer, control)
        self._lead = _lead(tokenizer)
        self._lead_ids = self._ids(self._lead)

    def encode(self, rendered: Rendered) -> list[int]:
        """Token ids of a text, whole."""
        return self._tokens([rendered])[0][0].tolist()

    def encode_batch(self, texts: Sequence[Rendered], cutoff_len: int) -> list[Encoded]:
        """Tokenise texts; the tokenizer works on all of them at once, with its own threads.

        Args:
            texts: The texts.
            cutoff_len: Greatest number of tokens: more are cut, see :meth:`dataflex.ChatTemplate.encode_batch`.
        """
        encoded = []
        for (ids, position), rendered in zip(self._tokens(texts), texts, strict=True):
            learnt = _merged((max(position[start], 1), position[end]) for start, end in rendered.trained)
            encoded.append(self._cut(Encoded(ids, learnt, truncated=False, notes=rendered.notes), cutoff_len))
        return encoded

    def _tokens(self, texts: Sequence[Rendered]) -> list[tuple[array[int], dict[int, int]]]:
        """Token ids of each text, and the number of tokens before each end of its spans."""
        plans = [self._pieces(rendered) for rendered in texts]
        pieces = [
            (self._lead if piece.behind else "") + rendered.text[piece.start : piece.end]
            for rendered, plan in zip(texts, plans, strict=True)
            for piece in plan
        ]
        ids = iter(self._token_ids.of(pieces))
        return [self._joined(rendered.text, plan, ids) for rendered, plan in zip(texts, plans, strict=True)]

    def _pieces(self, rendered: Rendered) -> list[_Piece]:
        """The part of the text up to each boundary, from the last special token or cut on.

        A special token splits the text for every tokenizer, so nothing before it needs to be tokenised again: the
        work is linear in the text.
        """
        text, cuts = rendered.text, set(rendered.cuts)
        places = {place for span in rendered.spans for place in span} | cuts
        pieces = []
        anchor, behind, token = 0, False, None
        for place in [*sorted(places - {len(text)}), len(text)]:
            pieces.append(_Piece(anchor, place, behind, token))
            if place in cuts:
                anchor, behind, token = place, True, None
            elif text.endswith(self._end, anchor, place):
                anchor, behind, token = place - len(self._end), False, self._end
            else:
                start, found = max(
                    ((text.rfind(mark, anchor, place), mark) for mark in self._anchors), default=(-1, "")
                )
                if start > anchor:
                    anchor, behind, token = start, False, found
        return pieces

    def _joined(self, text: str, plan: list[_Piece], pieces: Iterator[array[int]]) -> tuple[array[int], dict[int, int]]:
        """Ids of the whole text from the ids of its ``plan``; see the module's docstring."""
        done, tail = array(INT32), array(INT32)
        position: dict[int, int] = {}
        anchor = last = 0
        for start, place, behind, token in plan:
            if start != anchor:
                kept = len(tail) if behind else self._before(tail, token)
                done, tail, anchor = done + tail[:kept], tail[kept:], start
            piece = next(pieces)
            if behind:
                piece = self._without_lead(piece, text[start:place])
            tail = piece if piece[: len(tail)] == tail else tail + self._ids_behind(text[last:place])
            last = place
            position[place] = len(done) + len(tail)
        return done + tail, position

    def _before(self, ids: array[int], token: str | None) -> int:
        """Ids before the last occurrence of a special token; the end of a turn is the last id itself."""
        if token == self._end:
            return len(ids) - 1
        return len(ids) - 1 - ids[::-1].index(self._anchors[str(token)])

    def _ids(self, text: str) -> array[int]:
        return self._token_ids.of([text])[0]

    def _ids_behind(self, text: str) -> array[int]:
        """Ids of text that goes on behind other text: no token for the start of a text (SentencePiece's space)."""
        return self._without_lead(self._ids(self._lead + text), text)

    def _without_lead(self, ids: array[int], text: str) -> array[int]:
        """``ids`` of the lead and ``text``, without those of the lead; where both share a token, those of the text."""
        count = len(self._lead_ids)
        return ids[count:] if ids[:count] == self._lead_ids else self._ids(text)

    def _cut(self, whole: Encoded, cutoff_len: int) -> Encoded:
        ids = whole.ids
        if len(ids) <= cutoff_len:
            return whole
        start = whole.learnt[0][0] if whole.learnt else len(ids)
        kept = min(len(ids) - start, max(cutoff_len - start, cutoff_len - cutoff_len // 2))
        prompt = array(INT32, self.cut_left(ids[:start].tolist(), cutoff_len - kept))
        moved, end = len(prompt) - start, start + kept
        learnt = tuple((first + moved, min(last, end) + moved) for first, last in whole.learnt if first < end)
        return Encoded(prompt + ids[start:end], learnt, truncated=True, prompt_cut=moved < 0, notes=whole.notes)

    def cut_left(self, ids: list[int], length: int) -> list[int]:
        """The last ``length`` ids; a BOS in front stays (not where BOS is also a mark of turns, as in SmolLM2)."""
        if len(ids) <= length:
            return ids
        bos = self._tokenizer.bos_token_id
        if length > 1 and ids[0] == bos and bos not in ids[1:]:
            return [ids[0], *ids[len(ids) - length + 1 :]]
        return ids[len(ids) - length :]


def _merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Spans in order, those that meet as one, without empty ones."""
    found: list[Span] = []
    for start, end in spans:
        if end <= start:
            continue
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, end))
    return tuple(found)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Tokens that split the text before it is tokenised: id to text, special ones first."""
    added = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    special = {int(i): str(tokenizer.convert_ids_to_tokens(i)) for i in tokenizer.all_special_ids}
    return special | added


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Special tokens, in the narrow sense: not words that were merely added to the vocabulary."""
    named = {str(tokenizer.convert_ids_to_tokens(i)) for i in tokenizer.all_special_ids}
    return named | {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}


def _lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """Text to put in front of other text, so that this is tokenised as if it went on; empty if there is none.

    A special token does it, unless it takes white space away or has a space put behind it (SentencePiece with
    ``prepend_scheme: always``); a line break, which most vocabularies do not join with letters, is the second choice.
    """
    decoder = tokenizer.added_tokens_decoder
    special = (token for i, token in special_tokens(tokenizer).items() if i in decoder and not decoder[i].rstrip)
    candidates = [next(special, ""), "\n"]
    for lead in filter(None, candidates):
        ids = tokenizer(f"{lead}a", add_special_tokens=False, verbose=False)["input_ids"]
        if str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)).endswith(f"{lead}a"):
            return lead
    return candidates[0]
