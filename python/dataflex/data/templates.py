"""Chat templates: a conversation becomes token ids, and the assistant's tokens become labels.

A template is Jinja text, rendered by transformers' own machinery, so that the text equals that of
``tokenizer.apply_chat_template``. It is the tokenizer's, a file, or one of ours by name (``templates/*.jinja``). The
text says where the model speaks:

- with ``{% generation %}`` markers (ours have them), the marked spans;
- without, an answer starts where the text of the turns before it, rendered with the generation prompt, ends, and it
  goes to the first end-of-turn token. That text must be a prefix of the whole; a template that rewrites earlier turns
  is refused.

A span holds the answer and its end-of-turn token; not the turn's header, nor white space after the end token.

**Tokens.** Both ends of a span are token boundaries (:mod:`dataflex.data.encoding`).

**BOS.** Special tokens come from the template alone. Our templates print BOS only for tokenizers that put it before
plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from dataflex.data.encoding import Encoded, Span, SpanEncoder, special_tokens
from dataflex.data.hints import nearest_hint
from dataflex.errors import DataError
from dataflex.types import Message, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"
ALIASES = {"chatml": "qwen"}

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_INCLUDE = re.compile(r"\{#- include (_\w+\.jinja) -#\}\n")
_NO_BOS = '{%- set bos_token = "" -%}\n'
_QUESTION, _ANSWER = "QUESTION", "ANSWER"
_PROBE: tuple[Message, ...] = ({"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER})


class ChatTemplate:
    """A chat template together with the tokenizer that it is used with.

    Not for several threads at once: transformers tracks the marked spans in the compiled template.

    Attributes:
        name: ``auto``, one of :func:`template_names`, or the path of a Jinja file.
        source: The Jinja text; it can be stored as ``tokenizer.chat_template``.
    """

    def __init__(self, name: str, source: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name = name
        self.source = source
        self._tokenizer = tokenizer
        self._marked = _GENERATION.search(source) is not None
        self._special = special_tokens(tokenizer)
        self._end = self._end_of_turn()
        self._header = self._assistant_header()
        self._encoder = SpanEncoder(tokenizer, self._end)

    @classmethod
    def load(cls, name: str | None, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """Load a template.

        Args:
            name: None or ``auto`` for the tokenizer's own (its ``default``, if it has several), a name of
                :func:`template_names` or an alias, or the path of a Jinja file.
            tokenizer: The tokenizer that will encode its text.

        Raises:
            DataError: Unknown name, no template in the tokenizer, or a template that the tokenizer cannot close an
                answer with.
        """
        if name is None or name == AUTO:
            return cls(AUTO, _own_source(tokenizer), tokenizer)
        if name.endswith((".jinja", ".jinja2", ".j2")):
            path = Path(name)
            if not path.is_file():
                raise DataError(f"template file {path.absolute()} does not exist")
            return cls(name, path.read_text(encoding="utf-8"), tokenizer)
        known = ALIASES.get(name, name)
        if known not in template_names():
            choice = ", ".join([AUTO, *template_names(), *ALIASES])
            hint = nearest_hint(name, [AUTO, *template_names(), *ALIASES]) or "or the path of a .jinja file"
            raise DataError(f"unknown template {name!r}; known: {choice}", hint=hint)
        source = _packaged(f"{known}.jinja")
        return cls(known, source if _adds_bos(tokenizer) else _NO_BOS + source, tokenizer)

    def render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation.

        Args:
            messages: Its turns.
            tools: Definitions of the functions that the assistant may call.
            add_generation_prompt: End with the header of the assistant's next turn.

        Raises:
            DataError: The template refuses the conversation.
        """
        return self._render(messages, tools, add_generation_prompt)[0]

    def encode(self, sample: Sample, cutoff_len: int) -> Encoded:
        """Tokenise a whole conversation; :meth:`encode_batch` of one sample.

        Args:
            sample: The conversation.
            cutoff_len: Greatest number of tokens, at least 2.

        Raises:
            DataError: As there.
        """
        return self.encode_batch([sample], cutoff_len)[0]

    def encode_batch(self, samples: Sequence[Sample], cutoff_len: int) -> list[Encoded]:
        """Tokenise whole conversations, with labels on the assistant turns whose ``train`` is not False.

        More than ``cutoff_len`` tokens are cut so that the first labelled answer keeps its start: what follows the
        start of that answer gets half of the length, or more where the prompt leaves room; it loses its end, and what
        precedes it loses its beginning (except BOS). The tokenizer works on all samples at once, with its own threads.

        Args:
            samples: The conversations.
            cutoff_len: Greatest number of tokens, at least 2.

        Raises:
            DataError: The template refuses a conversation, or ``cutoff_len`` is below 2.
        """
        if cutoff_len < 2:
            raise DataError(f"cutoff_len is {cutoff_len}, expected at least 2: a prompt token and an answer token")
        return self._encoder.encode_batch([self._render_sample(sample) for sample in samples], cutoff_len)

    def encode_prompt(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), max_length: int | None = None
    ) -> list[int]:
        """Tokenise the turns before an answer, with the generation prompt.

        The ids are a prefix of :meth:`encode` of the same turns with an answer, if the template itself renders them so
        (ours do).

        Args:
            messages: The turns before the answer.
            tools: Definitions of the functions that the assistant may call.
            max_length: Greatest number of tokens: more are cut on the left, BOS stays. None: no limit.

        Raises:
            DataError: The template refuses the conversation.
        """
        text, spans = self._render(messages, tools, add_generation_prompt=True)
        ids = self._encoder.encode(text, spans)
        return ids if max_length is None else self._encoder.cut_left(ids, max_length)

    def stop_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Ids of ``tokenizer`` that end an answer: the template's end of turn and the tokenizer's EOS."""
        ids = (tokenizer.convert_tokens_to_ids(self._end), tokenizer.eos_token_id)
        return {i for i in ids if isinstance(i, int)}

    def _render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], add_generation_prompt: bool
    ) -> tuple[str, list[Span]]:
        """The text, and where in it the assistant speaks."""
        self._check_functions(messages, tools)
        text, marked = self._render_text(messages, tools, add_generation_prompt)
        if self._marked:
            return text, [self._normalised(text, start, end) for start, end in marked]
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        return text, [self._searched(text, messages[:turn], tools) for turn in turns]

    def _check_functions(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> None:
        """Refuse what the template would leave out without a word: a call would become an empty answer."""
        called = any(message.get("tool_calls") for message in messages)
        for used, name in ((tools, "tools"), (called, "tool_calls")):
            if used and name not in self.source:
                raise DataError(
                    f"the conversation has {name}, for which template {self.name!r} has no place",
                    hint=f"choose one of our templates, which all have: {', '.join(template_names())}",
                )

    def _render_text(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], add_generation_prompt: bool
    ) -> tuple[str, list[Span]]:
        """The text, and the spans that the template marks."""
        conversation = [{key: value for key, value in message.items() if key != "train"} for message in messages]
        arguments: dict[str, Any] = {
            **self._tokenizer.special_tokens_map,
            "tools": list(tools) or None,
            "chat_template": self.source,
            "return_assistant_tokens_mask": self._marked,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            rendered: Any = render_jinja_template([conversation], **arguments)
        except (jinja2.TemplateError, TypeError) as error:
            raise DataError(f"template {self.name!r} cannot render the conversation: {error}") from error
        (text,), marked = rendered
        return text, marked[0] if marked else []

    def _normalised(self, text: str, start: int, end: int) -> Span:
        """A marked span without the header, with the end-of-turn token and nothing behind it."""
        if text.startswith(self._header, start) and not text.endswith(self._header, 0, start):
            start += len(self._header)
        body = text[start:end].rstrip()
        if body.endswith(self._end):
            return start, start + len(body)
        closing = re.compile(r"\s*" + re.escape(self._end)).match(text, end)
        return start, closing.end() if closing else end

    def _searched(self, text: str, before: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Span:
        """The span of the answer that follows the turns ``before``, for templates without markers."""
        prompt = self._render_text(before, tools, add_generation_prompt=True)[0]
        end = text.find(self._end, len(prompt))
        if not text.startswith(prompt) or end < 0:
            raise DataError(
                f"template {self.name!r} has no generation markers and renders turns differently once an answer "
                f"follows, so that the answer at turn {len(before)} cannot be located",
                hint=f"choose one of our templates ({', '.join(template_names())}) or a .jinja file with markers",
            )
        return len(prompt), end + len(self._end)

    def _render_sample(self, sample: Sample) -> tuple[str, list[Span], list[Span]]:
        """The text, the assistant's spans, and those of them that carry loss."""
        flags = [message.get("train", True) for message in sample.messages if message["role"] == "assistant"]
        try:
            text, spans = self._render(sample.messages, sample.tools, add_generation_prompt=False)
            if all(flags):
                return text, spans, spans
            if len(spans) != len(flags):
                raise DataError(
                    f"template {self.name!r} marks {len(spans)} spans for {len(flags)} assistant turns, so that turns "
                    "without loss cannot be told apart"
                )
        except DataError as error:
            raise DataError(f"sample {sample.id!r} (row {sample.row}): {error.message}", hint=error.hint) from error
        return text, spans, [span for span, flag in zip(spans, flags, strict=True) if flag]

    def _end_of_turn(self) -> str:
        """The token behind an answer, found by rendering one."""
        tail = self._render_text(_PROBE, (), add_generation_prompt=False)[0].rpartition(_ANSWER)[2].lstrip()
        found = max((token for token in self._special.values() if tail.startswith(token)), key=len, default=None)
        if found is None:
            shown = repr(tail[:40]) if tail else "nothing"
            raise DataError(
                f"template {self.name!r} ends an answer with {shown}, which does not begin with a special token of "
                f"this tokenizer ({', '.join(sorted(self._special.values())[:12])}): the model could not end an answer",
                hint="choose the template that the tokenizer was made for, or one that ends with its EOS (alpaca, "
                "default, mistral, vicuna)",
            )
        return found

    def _assistant_header(self) -> str:
        """What the generation prompt adds to a conversation; empty if it changes what is before."""
        plain = self._render_text(_PROBE[:1], (), add_generation_prompt=False)[0]
        prompt = self._render_text(_PROBE[:1], (), add_generation_prompt=True)[0]
        return prompt[len(plain) :] if prompt.startswith(plain) else ""


def template_names() -> list[str]:
    """Names of the templates that come with dataflex, sorted."""
    names = (Path(entry.name) for entry in _folder().iterdir())
    return sorted(name.stem for name in names if name.suffix == ".jinja" and not name.stem.startswith("_"))


def _folder() -> Any:
    return files("dataflex.data").joinpath("templates")


def _packaged(name: str) -> str:
    """The text of a packaged template, with the macro files that it includes put in place."""
    text: str = _folder().joinpath(name).read_text(encoding="utf-8")
    return _INCLUDE.sub(lambda match: _packaged(match[1]), text)


def _own_source(tokenizer: PreTrainedTokenizerBase) -> str:
    source = tokenizer.chat_template
    if isinstance(source, dict):
        source = source.get("default")
    if not source:
        raise DataError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template of its own",
            hint=f"name one as `template`: {', '.join(template_names())}",
        )
    return str(source)


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
