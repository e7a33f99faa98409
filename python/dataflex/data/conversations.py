"""Token ids of whole conversations, for models that read them: no labels, and text of rows stays text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dataflex.data.encoding import Rendered, SpanEncoder
from dataflex.data.probe import Source, frame_of
from dataflex.data.quoting import Quotes, TokenPattern
from dataflex.data.turns import template_turns
from dataflex.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ConversationEncoder:
    """Renders conversations with a tokenizer's own chat template; see :mod:`dataflex.data.quoting`.

    Args:
        tokenizer: A tokenizer with a chat template.

    Raises:
        DataError: The template cannot be rendered.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._source = Source("auto", tokenizer.get_chat_template(), tokenizer)
        frame = frame_of(self._source)
        self._control, self._special = TokenPattern(frame.control), TokenPattern(frame.special)
        self._encoder = SpanEncoder(tokenizer, frame.end or "")

    def encode(self, turns: Sequence[Message]) -> list[int]:
        """Token ids of a conversation.

        Raises:
            DataError: The template refuses it.
        """
        quotes = Quotes(self._control, self._special, turns)
        text, _ = self._source.render(template_turns(quotes.marked(turns), set()))
        text, _, cuts = quotes.unmarked(text, [])
        return self._encoder.encode(Rendered(text, [], [], cuts))
