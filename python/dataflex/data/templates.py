"""Chat templates: a conversation becomes token ids, and the assistant's tokens become labels.

A template is Jinja text, rendered by transformers' own machinery, so that the text equals that of
``tokenizer.apply_chat_template``. It is the tokenizer's, a file, or one of ours by name (``templates/*.jinja``). The
text says where the model speaks:

- with ``{% generation %}`` markers (ours have them), the marked spans;
- without, an answer starts where the text of the turns before it, rendered with the generation prompt, ends, and it
  goes to the first end-of-turn token that the template writes. That text must be a prefix of the whole; a template that
  rewrites earlier turns is refused.

A span holds the answer and its end-of-turn token; not the turn's header, nor white space after the end token.

**Tokens.** Both ends of a span are token boundaries (:mod:`dataflex.data.encoding`). Text of a row that reads like a
control token stays text (:mod:`dataflex.data.quoting`): it neither ends an answer nor opens a turn.

**Keys.** A template may read any key of a turn (``reasoning_content``, ``tool_call_id``); keys that rows have and it
does not read are noted (:mod:`dataflex.data.notes`).

**BOS.** Special tokens come from the template alone. Our templates print BOS only for tokenizers that put it before
plain text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dataflex.data.encoding import Encoded, Rendered, Span, SpanEncoder, control_tokens
from dataflex.data.notes import TOOLS_CUT, row_notes, text_notes, unread_notes
from dataflex.data.probe import Conversation, Source, frame_of
from dataflex.data.problems import Problems
from dataflex.data.quoting import Quotes, TokenPattern
from dataflex.data.template_names import fitting_hint, read_source
from dataflex.data.turns import Read, template_turns
from dataflex.errors import DataError
from dataflex.types import Message, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatTemplate:
    """A chat template together with the tokenizer that it is used with.

    Not for several threads at once: transformers tracks the marked spans in the compiled template.

    Attributes:
        name: ``auto``, one of :func:`dataflex.data.template_names.template_names`, or the path of a Jinja file.
        source: The Jinja text; it can be stored as ``tokenizer.chat_template``.
        now: The date and time that it prints: one for all conversations, and for a run that goes on another day.
    """

    def __init__(self, name: str, source: str, tokenizer: PreTrainedTokenizerBase, now: datetime | None = None) -> None:
        self.name = name
        self.source = source
        self.now = now or datetime.now()
        self._tokenizer = tokenizer
        self._source = Source(name, source, tokenizer, self.now)
        self._frame = frame_of(self._source)
        self._end = self._end_of_turn()
        self._control, self._special = TokenPattern(self._frame.control), TokenPattern(self._frame.special)
        self._encoder = SpanEncoder(tokenizer, self._end, self._frame.control)

    @classmethod
    def load(cls, name: str | None, tokenizer: PreTrainedTokenizerBase, *, now: datetime | None = None) -> ChatTemplate:
        """Load a template.

        Args:
            name: None or ``auto`` for the tokenizer's own (its ``default``, if it has several), a name of
                :func:`dataflex.data.template_names.template_names` or an alias, or the path of a Jinja file.
            tokenizer: The tokenizer that will encode its text.
            now: The date and time that it prints; None: those of this moment.

        Raises:
            DataError: Unknown name, no template in the tokenizer, or a template that the tokenizer cannot close an
                answer with.
        """
        source = read_source(name, tokenizer)
        return cls(source.name, source.text, tokenizer, now)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that encodes its text."""
        return self._tokenizer

    @property
    def prints_date(self) -> bool:
        """Whether its text can depend on the date (``strftime_now``, as in Llama's templates)."""
        return "strftime_now" in self.source

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
        return self._render_all([(messages, tools)], add_generation_prompt)[0].text

    def encode(self, sample: Sample, cutoff_len: int) -> Encoded:
        """Tokenise a whole conversation; :meth:`encode_batch` of one sample.

        Args:
            sample: The conversation.
            cutoff_len: Greatest number of tokens, at least 2.

        Raises:
            DataError: As there.
        """
        return self.encode_batch([sample], cutoff_len)[0]

    def encode_batch(
        self, samples: Sequence[Sample], cutoff_len: int, problems: Problems | None = None
    ) -> list[Encoded]:
        """Tokenise whole conversations, with labels on the assistant turns whose ``train`` is not False.

        More than ``cutoff_len`` tokens are cut so that the first labelled answer keeps its start: what follows the
        start of that answer gets half of the length, or more where the prompt leaves room; it loses its end, and what
        precedes it loses its beginning (except BOS). The tokenizer works on all samples at once, with its own threads.

        Args:
            samples: The conversations.
            cutoff_len: Greatest number of tokens, at least 2.
            problems: Collects the conversations that the template refuses; once there are some, nothing is tokenised
                and the result is empty. None: they are raised.

        Raises:
            DataError: The template refuses conversations (all are counted), or ``cutoff_len`` is below 2.
        """
        if cutoff_len < 2:
            raise DataError(f"cutoff_len is {cutoff_len}, expected at least 2: a prompt token and an answer token")
        found = Problems() if problems is None else problems
        rendered = self._render_samples(samples, found)
        if problems is None:
            self.raise_refused(found, len(samples))
        if found.count:
            return []
        encoded = self._encoder.encode_batch(rendered, cutoff_len)
        return [
            replace(row, notes=(*row.notes, TOOLS_CUT)) if row.prompt_cut and sample.tools else row
            for row, sample in zip(encoded, samples, strict=True)
        ]

    def raise_refused(self, problems: Problems, total: int) -> None:
        """Raise one error for all conversations that the template refused.

        Args:
            problems: What :meth:`encode_batch` collected.
            total: How many conversations there were.

        Raises:
            DataError: There are some.
        """
        hint = "correct or remove these rows, or choose another template"
        problems.raise_if_any(f"COUNT of {total:,} samples cannot be rendered with template {self.name!r}:", hint)

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
        ids = self._encoder.encode(self._render_all([(messages, tools)], True)[0])
        return ids if max_length is None else self._encoder.cut_left(ids, max_length)

    def stop_token_ids(self, tokenizer: PreTrainedTokenizerBase) -> set[int]:
        """Ids of ``tokenizer`` that end an answer: the template's end of turn and the tokenizer's EOS."""
        ids = (tokenizer.convert_tokens_to_ids(self._end), tokenizer.eos_token_id)
        return {i for i in ids if isinstance(i, int)}

    def _render_all(self, conversations: Sequence[Conversation], add_generation_prompt: bool) -> list[Rendered]:
        """The text of each, and where in it the assistant speaks."""
        for messages, tools in conversations:
            self._check_functions(messages, tools)
        quotes = [Quotes(self._control, self._special, conversation) for conversation in conversations]
        read: list[Read] = [set() for _ in conversations]
        marked = [
            (template_turns(quoted.marked(messages), keys), quoted.marked(tools))
            for quoted, (messages, tools), keys in zip(quotes, conversations, read, strict=True)
        ]
        texts = self._source.render_all(marked, add_generation_prompt=add_generation_prompt)
        if self._source.marked:
            spans = [[self._normalised(text, *span) for span in found] for text, found in texts]
        else:
            spans = self._searched(marked, [text for text, _ in texts])
        found = []
        for place, quoted in enumerate(quotes):
            text, own, cuts = quoted.unmarked(texts[place][0], spans[place])
            unread = unread_notes(conversations[place][0], read[place])
            found.append(Rendered(text, own, own, cuts, (*text_notes(quoted.quoted, quoted.kept), *unread)))
        return found

    def _check_functions(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> None:
        """Refuse what the template would leave out without a word: a call would become an empty answer."""
        called = any(message.get("tool_calls") for message in messages)
        for used, name in ((tools, "tools"), (called, "tool_calls")):
            if used and name not in self.source:
                raise DataError(
                    f"the conversation has {name}, for which template {self.name!r} has no place",
                    hint=f"templates of dataflex all have one: {fitting_hint(self._tokenizer)}",
                )

    def _normalised(self, text: str, start: int, end: int) -> Span:
        """A marked span without the header, with the end-of-turn token and nothing behind it."""
        header = self._frame.header
        if text.startswith(header, start) and not text.endswith(header, 0, start):
            start += len(header)
        body = text[start:end].rstrip()
        if body.endswith(self._end):
            return start, start + len(body)
        closing = re.compile(r"\s*" + re.escape(self._end)).match(text, end)
        return start, closing.end() if closing else end

    def _searched(self, conversations: Sequence[Conversation], texts: Sequence[str]) -> list[list[Span]]:
        """The spans of the answers in each text, for templates without markers."""
        answers = [
            (place, answer)
            for place, (turns, _) in enumerate(conversations)
            for answer, turn in enumerate(turns)
            if turn["role"] == "assistant"
        ]
        before = [(conversations[place][0][:answer], conversations[place][1]) for place, answer in answers]
        prompts = self._source.render_all(before, add_generation_prompt=True)
        spans: list[list[Span]] = [[] for _ in texts]
        for (place, answer), (prompt, _) in zip(answers, prompts, strict=True):
            end = texts[place].find(self._end, len(prompt))
            if not texts[place].startswith(prompt) or end < 0:
                raise DataError(
                    f"template {self.name!r} has no generation markers and renders turns differently once an answer "
                    f"follows, so that the answer at turn {answer} cannot be located",
                    hint=fitting_hint(self._tokenizer),
                )
            spans[place].append((len(prompt), end + len(self._end)))
        return spans

    def _render_samples(self, samples: Sequence[Sample], problems: Problems) -> list[Rendered]:
        """The text, the assistant's spans, and those of them that carry loss, of those that can be rendered."""
        with suppress(DataError):  # which sample it was is found one by one
            return self._render_together(samples)
        found = []
        for sample in samples:
            try:
                found += self._render_together([sample])
            except DataError as error:
                problems.add(f"sample {sample.id!r} (row {sample.row})", error)
        return found

    def _render_together(self, samples: Sequence[Sample]) -> list[Rendered]:
        rendered = self._render_all([(sample.messages, sample.tools) for sample in samples], False)
        return [
            Rendered(text.text, text.spans, self._trained(sample, text), text.cuts, (*row_notes(sample), *text.notes))
            for sample, text in zip(samples, rendered, strict=True)
        ]

    def _trained(self, sample: Sample, rendered: Rendered) -> list[Span]:
        """The spans of the turns that carry loss."""
        flags = [message.get("train", True) for message in sample.messages if message["role"] == "assistant"]
        if all(flags):
            return rendered.spans
        if len(rendered.spans) != len(flags):
            raise DataError(
                f"template {self.name!r} marks {len(rendered.spans)} spans for {len(flags)} assistant turns, so that "
                "turns without loss cannot be told apart"
            )
        return [span for span, flag in zip(rendered.spans, flags, strict=True) if flag]

    def _end_of_turn(self) -> str:
        """The token behind an answer."""
        if self._frame.end is not None:
            return self._frame.end
        shown = repr(self._frame.tail[:40]) if self._frame.tail else "nothing"
        raise DataError(
            f"template {self.name!r} ends an answer with {shown}, which does not begin with a special token of "
            f"this tokenizer ({', '.join(sorted(control_tokens(self._tokenizer))[:12])}): the model could not end an "
            "answer",
            hint=fitting_hint(self._tokenizer),
        )
