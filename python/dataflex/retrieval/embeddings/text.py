"""The text of a sample that is embedded.

By default question and answer, joined by a line break (for Alpaca rows: instruction, input, output); a conversation
of several turns is rendered turn by turn as ``role: content``. System turns and tool definitions are left out: whole
datasets share them, and they would make their rows alike. A Jinja text says it differently.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dataflex.errors import ConfigError, DataError
from dataflex.types import Message, Sample
from dataflex.utils.deadline import cpu_limit


class TextTemplate:
    """Renders samples.

    Args:
        source: Jinja text with ``prompt`` (the turns before the last answer, joined), ``response`` (that answer),
            ``system``, ``messages``, ``tools``, ``metadata`` and ``id``; None for the default.

    Raises:
        ConfigError: The text is not valid Jinja.
    """

    def __init__(self, source: str | None = None) -> None:
        self.source = source
        environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        try:
            self._template = None if source is None else environment.from_string(source)
        except TemplateError as error:
            raise ConfigError(f"text template {source!r} is not valid Jinja: {error}") from error

    def render(self, sample: Sample) -> str:
        """The text of one sample, without white space around it.

        Raises:
            DataError: The template names something that the sample does not have.
        """
        if self._template is None:
            return default_text(sample.messages).strip()
        turns = [message for message in sample.prompt if message["role"] != "system"]
        system = [message["content"] for message in sample.messages if message["role"] == "system"]
        try:
            with cpu_limit():
                text = self._template.render(
                    prompt="\n".join(map(content_text, turns)),
                    response=sample.reference or "",
                    system=system[0] if system else "",
                    messages=list(sample.messages),
                    tools=list(sample.tools),
                    metadata=dict(sample.metadata),
                    id=sample.id,
                )
        except (TemplateError, TypeError, ValueError, TimeoutError) as error:
            raise DataError(
                f"text template {self.source!r} cannot render sample {sample.id!r} (row {sample.row}): {error}",
                hint="it knows prompt, response, system, messages, tools, metadata and id; other columns of a row are "
                "in metadata",
            ) from error
        return text.strip()


def default_text(messages: Sequence[Message]) -> str:
    """Question and answer joined by a line break, or the turns of a longer conversation; no system turn."""
    turns = [message for message in messages if message["role"] != "system"]
    if [message["role"] for message in turns] in (["user"], ["user", "assistant"]):
        return "\n".join(map(content_text, turns))
    return "\n".join(f"{message['role']}: {content_text(message)}" for message in turns)


def content_text(message: Message) -> str:
    """A turn's content; function calls follow as JSON."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join(part for part in (message["content"], *calls) if part)
