"""What a template writes around an answer, found by rendering one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from dataflex.data.encoding import Span, control_tokens, special_tokens
from dataflex.errors import DataError
from dataflex.types import Message
from dataflex.utils.deadline import cpu_limit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_QUESTION, _ANSWER = "QUESTION", "ANSWER"
_PROBE: tuple[Message, ...] = ({"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER})

Conversation = tuple[Sequence[Any], Sequence[dict[str, Any]]]
"""Turns, and definitions of functions."""

TEMPLATE_ERRORS = (
    TimeoutError,
    jinja2.TemplateError,
    *(TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError),
)
"""What the expressions of a template raise over a conversation."""


@dataclass(frozen=True, slots=True)
class Source:
    """A template's Jinja text.

    Attributes:
        name: How messages call it.
        text: The Jinja text.
        tokenizer: The tokenizer whose special tokens it may name.
        now: The date and time that it prints.
    """

    name: str
    text: str
    tokenizer: PreTrainedTokenizerBase
    now: datetime = field(default_factory=datetime.now)

    @property
    def marked(self) -> bool:
        """It marks where the assistant speaks."""
        return _GENERATION.search(self.text) is not None

    def render(
        self, turns: Sequence[Any], tools: Sequence[dict[str, Any]] = (), *, add_generation_prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """The text of a conversation, and the spans that the template marks.

        Raises:
            DataError: The template refuses it.
        """
        return self.render_all([(turns, tools)], add_generation_prompt=add_generation_prompt)[0]

    def render_all(
        self, conversations: Iterable[Conversation], *, add_generation_prompt: bool = False
    ) -> list[tuple[str, list[Span]]]:
        """:meth:`render` of each conversation.

        Args:
            conversations: Turns and functions of each.
            add_generation_prompt: As there.

        Raises:
            DataError: The template refuses one of them, or neighbours with equal functions take longer than one may.
        """
        common: dict[str, Any] = {
            **self.tokenizer.special_tokens_map,
            "chat_template": self.text,
            "return_assistant_tokens_mask": self.marked,
            "add_generation_prompt": add_generation_prompt,
            "strftime_now": self.now.strftime,
        }
        found: list[tuple[str, list[Span]]] = []
        try:
            for tools, some in groupby(conversations, key=lambda it: list(it[1]) or None):
                with cpu_limit():
                    rendered: Any = render_jinja_template([list(turns) for turns, _ in some], tools=tools, **common)
                texts, marked = rendered
                found += zip(texts, marked or [[] for _ in texts], strict=True)
        except TEMPLATE_ERRORS as error:
            raise DataError(f"template {self.name!r} cannot render the conversation: {error}") from error
        return found


@dataclass(frozen=True, slots=True)
class Frame:
    """What a template writes around an answer.

    Attributes:
        tail: Everything behind the answer, without white space in front.
        end: The special token at the start of ``tail``; None if there is none.
        header: What the generation prompt adds to a conversation; empty if it changes what is before.
        control: Special tokens that the template writes around turns, and those that the tokenizer has names for.
        special: The tokenizer's other special tokens.
    """

    tail: str
    end: str | None
    header: str
    control: frozenset[str]
    special: frozenset[str]


def frame_of(source: Source) -> Frame:
    """Render an answer and look at what is around it.

    Raises:
        DataError: The template cannot be rendered at all.
    """
    text, _ = source.render(_PROBE)
    plain, _ = source.render(_PROBE[:1])
    prompt, _ = source.render(_PROBE[:1], add_generation_prompt=True)
    tail = text.rpartition(_ANSWER)[2].lstrip()
    tokens = special_tokens(source.tokenizer).values()
    end = max((token for token in tokens if tail.startswith(token)), key=len, default=None)
    special = control_tokens(source.tokenizer)
    control = _control(source, special, around=prompt + tail, answer=text.rpartition(_ANSWER)[0].removeprefix(prompt))
    return Frame(
        tail=tail,
        end=end,
        header=prompt[len(plain) :] if prompt.startswith(plain) else "",
        control=frozenset(control | ({end} if end else set())),
        special=frozenset(special - control),
    )


def _control(source: Source, special: set[str], *, around: str, answer: str) -> set[str]:
    """Special tokens that frame turns; those that stand inside an answer only, marks of a thought, do not."""
    named = {str(token) for token in source.tokenizer.special_tokens_map.values()}
    inside = {token for token in special if token in answer and token not in around}
    written = {token for token in special if token in around or token in source.text}
    return (written - inside) | (named & special)
