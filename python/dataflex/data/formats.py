"""Forms that rows come in, each turned into :class:`dataflex.types.Sample`.

A format recognises its rows by their columns and is registered under the plugin kind ``dataset_format``. The names
of columns and roles can be mapped, with LLaMA-Factory's keys (:class:`Columns`). Columns that no mapping uses become
``Sample.metadata``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from dataflex.data.messages import (
    answer_of,
    assistant_message,
    conversation,
    plain_message,
    text_of,
    tool_calls_of,
    tools_of,
    with_other_keys,
)
from dataflex.errors import DataError
from dataflex.types import Message, Role, Sample
from dataflex.utils.shown import quoted

Row = Mapping[str, Any]

_OPENAI_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns of a row and of the keys and roles inside a conversation; None: there is none.

    The fields have the names of LLaMA-Factory's ``columns`` and ``tags``.
    """

    prompt: str | None = None
    query: str | None = None
    response: str | None = None
    history: str | None = None
    messages: str | None = None
    system: str | None = None
    tools: str | None = None
    role_tag: str | None = None
    content_tag: str | None = None
    user_tag: str | None = None
    assistant_tag: str | None = None
    observation_tag: str | None = None
    function_tag: str | None = None
    system_tag: str | None = None

    def used(self) -> set[str]:
        """Names of the row's columns that the conversation is made of."""
        return {name for key in COLUMN_KEYS if (name := getattr(self, key)) is not None}


TAG_KEYS = tuple(field.name for field in fields(Columns) if field.name.endswith("_tag"))
ROLE_KEYS = tuple(name for name in TAG_KEYS if name not in ("role_tag", "content_tag"))
COLUMN_KEYS = tuple(field.name for field in fields(Columns) if field.name not in TAG_KEYS)


class DatasetFormat(ABC):
    """One form of rows.

    Attributes:
        name: How ``formatting`` in a ``dataset_info.json`` and messages call it.
        expects: The columns that it needs, for error messages.
        required: Fields of :class:`Columns` that must be mapped.
    """

    name: ClassVar[str]
    expects: ClassVar[str]
    required: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def matches(self, columns: set[str], row: Row) -> bool:
        """Whether a row with these columns, under their default names, has this form.

        Args:
            columns: Columns with a value; null means absent.
            row: The row.
        """

    def default_columns(self, row: Row) -> Columns:
        """The column names of ``row`` when nothing maps them."""
        del row
        return Columns()

    @abstractmethod
    def to_sample(self, row: Row, row_index: int, columns: Columns) -> Sample:
        """Convert one row.

        Args:
            row: The row as read; null means absent.
            row_index: Its number in the source, from 0.
            columns: What the columns are called.

        Raises:
            DataError: The row is damaged; the message need not name the row.
        """


class AlpacaFormat(DatasetFormat):
    """``instruction``, ``input``, ``output``; optional ``system``, ``history`` pairs, ``tools``.

    Instruction and input are joined by a line break, as in LLaMA-Factory.
    """

    name = "alpaca"
    expects = "instruction, output (and input, system, history, tools)"
    required = ("prompt", "response")

    def matches(self, columns: set[str], row: Row) -> bool:
        """An instruction and an output."""
        del row
        return {"instruction", "output"} <= columns

    def default_columns(self, row: Row) -> Columns:
        """Stanford Alpaca's names, with LLaMA-Factory's optional columns."""
        del row
        return Columns(
            prompt="instruction", query="input", response="output", history="history", system="system", tools="tools"
        )

    def to_sample(self, row: Row, row_index: int, columns: Columns) -> Sample:
        """History pairs, then the question, then the answer."""
        turns: list[Message] = []
        for pair in _optional(row, columns.history) or []:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise DataError(f"{columns.history} has {quoted(pair)}, expected [question, answer] pairs")
            turns += [
                plain_message("user", text_of(pair[0], "history")),
                assistant_message(text_of(pair[1], "history"), {}),
            ]
        prompt = text_of(_needed(row, columns.prompt), str(columns.prompt))
        query = _optional_text(row, columns.query)
        turns.append(plain_message("user", "\n".join(part for part in (prompt, query) if part)))
        turns.append(assistant_message(text_of(_needed(row, columns.response), str(columns.response)), {}))
        return _sample(row, row_index, columns, turns)


class ShareGptFormat(DatasetFormat):
    """``conversations`` of ``{"from", "value"}``; optional ``system``, ``tools``.

    Roles keep their order. A ``function_call`` turn is an assistant turn whose value is the JSON of one call or a
    list of calls; an ``observation`` is the tool's answer.
    """

    name = "sharegpt"
    expects = "conversations of {from, value} (and system, tools)"
    required = ("messages", "role_tag", "content_tag", "user_tag", "assistant_tag")

    def matches(self, columns: set[str], row: Row) -> bool:
        """A list of ``{"from", "value"}``."""
        return _conversation_column(row, columns, {"from", "value"}) is not None

    def default_columns(self, row: Row) -> Columns:
        """The usual names; the conversation may also lie in ``messages`` or ``conversation``."""
        return Columns(
            messages=_conversation_column(row, set(row), {"from", "value"}) or "conversations",
            system="system",
            tools="tools",
            role_tag="from",
            content_tag="value",
            user_tag="human",
            assistant_tag="gpt",
            observation_tag="observation",
            function_tag="function_call",
            system_tag="system",
        )

    def to_sample(self, row: Row, row_index: int, columns: Columns) -> Sample:
        """Every turn in its place."""
        turns = [_sharegpt_turn(item, columns) for item in _turns(row, columns)]
        return _sample(row, row_index, columns, turns)


class OpenAiFormat(DatasetFormat):
    """``messages`` of ``{"role", "content"}``; optional ``tools``.

    Content is text or a list of typed parts (text; in assistant turns also reasoning and tool_call); assistant turns
    may have ``tool_calls``; ``loss_weight`` (or OpenAI's ``weight``) 0 or ``train: false`` takes an assistant turn out
    of the loss. Other keys of a turn go to the chat template.
    """

    name = "openai"
    expects = "messages of {role, content} (and tools)"
    required = ("messages", "role_tag", "content_tag")

    def matches(self, columns: set[str], row: Row) -> bool:
        """A list of ``{"role", "content"}``."""
        return _conversation_column(row, columns, {"role"}) is not None

    def default_columns(self, row: Row) -> Columns:
        """OpenAI's names; the conversation may also lie in ``conversations`` or ``conversation``."""
        return Columns(
            messages=_conversation_column(row, set(row), {"role"}) or "messages",
            tools="tools",
            role_tag="role",
            content_tag="content",
        )

    def to_sample(self, row: Row, row_index: int, columns: Columns) -> Sample:
        """Every turn in its place."""
        turns = [_openai_turn(item, columns) for item in _turns(row, columns)]
        return _sample(row, row_index, columns, turns)


class PromptCompletionFormat(DatasetFormat):
    """``prompt`` and ``completion``, each a text or a list of OpenAI messages.

    A prompt text becomes a user turn and a completion text an assistant turn: the chat template is applied to both.
    """

    name = "prompt_completion"
    expects = "prompt, completion (text or messages; and tools)"
    required = ("prompt", "response")

    def matches(self, columns: set[str], row: Row) -> bool:
        """A prompt and a completion."""
        del row
        return {"prompt", "completion"} <= columns

    def default_columns(self, row: Row) -> Columns:
        """TRL's names."""
        del row
        return Columns(prompt="prompt", response="completion", tools="tools", role_tag="role", content_tag="content")

    def to_sample(self, row: Row, row_index: int, columns: Columns) -> Sample:
        """The prompt's turns, then the completion's."""
        turns: list[Message] = []
        for column, role in ((columns.prompt, "user"), (columns.response, "assistant")):
            value = _needed(row, column)
            if isinstance(value, str):
                turns.append(assistant_message(value, {}) if role == "assistant" else plain_message("user", value))
            elif isinstance(value, (list, tuple)):
                turns += [_openai_turn(item, columns) for item in value]
            else:
                raise DataError(f"{column} is {quoted(value)}, expected text or a list of messages")
        if turns and turns[-1]["role"] != "assistant":
            raise DataError(f"{columns.response} ends with a {turns[-1]['role']} turn, expected an assistant turn")
        return _sample(row, row_index, columns, turns)


_RECOGNISED = (
    *("instruction", "input", "output", "history", "prompt", "completion"),
    *("messages", "conversations", "conversation", "system", "tools"),
)


def as_row(sample: Sample, source: Row) -> dict[str, Any]:
    """A sample as a row of messages, which is recognised without a mapping.

    Args:
        sample: The sample.
        source: The row that it was read from, whose ``id`` is kept. Other columns that would make a row of another
            form of it get an underscore.
    """
    own_id = {"id": source["id"]} if str(source.get("id")) == sample.id else {}
    metadata = {f"{name}_" if name in _RECOGNISED else name: value for name, value in sample.metadata.items()}
    tools = {"tools": list(sample.tools)} if sample.tools else {}
    return own_id | {"messages": [dict(message) for message in sample.messages]} | tools | metadata


def _sharegpt_turn(item: Row, columns: Columns) -> Message:
    tag = str(_needed(item, columns.role_tag))
    content = _needed(item, columns.content_tag)
    read = (columns.role_tag, columns.content_tag)
    if tag == columns.function_tag:
        return with_other_keys(assistant_message("", item, tool_calls_of(content, tag)), item, read)
    text = text_of(content, str(columns.content_tag))
    role = _mapped_role(columns, tag)
    if role is None:
        names = [name for key in ROLE_KEYS if (name := getattr(columns, key)) is not None]
        raise DataError(f"a turn has {columns.role_tag} {tag!r}, expected one of {', '.join(names)}")
    message = assistant_message(text, item) if role == "assistant" else plain_message(role, text)
    return with_other_keys(message, item, read)


_ROLE_TAGS: tuple[tuple[str, Role], ...] = (
    ("user_tag", "user"),
    ("assistant_tag", "assistant"),
    ("observation_tag", "tool"),
    ("system_tag", "system"),
)


def _mapped_role(columns: Columns, tag: str) -> Role | None:
    return next((role for key, role in _ROLE_TAGS if getattr(columns, key) == tag), None)


def _openai_turn(item: Row, columns: Columns) -> Message:
    if not isinstance(item, Mapping):
        raise DataError(
            f"a turn is {quoted(item)}, expected an object with {columns.role_tag!r} and {columns.content_tag!r}"
        )
    tag = str(_needed(item, columns.role_tag))
    role = _mapped_role(columns, tag) or _OPENAI_ROLES.get(tag)
    if role is None:
        roles = [*_OPENAI_ROLES, *(name for key, _ in _ROLE_TAGS if (name := getattr(columns, key)) is not None)]
        raise DataError(f"a turn has {columns.role_tag} {tag!r}, expected one of {', '.join(roles)}")
    message = _answer(item, columns) if role == "assistant" else plain_message(role, text_of(*_content(item, columns)))
    return with_other_keys(message, item, (columns.role_tag, columns.content_tag))


def _content(item: Row, columns: Columns) -> tuple[Any, str]:
    return _needed(item, columns.content_tag), str(columns.content_tag)


def _answer(item: Row, columns: Columns) -> Message:
    """An assistant turn: content, calls, or both."""
    given = item.get("tool_calls") or item.get("function_call")
    calls = tool_calls_of(given, "tool_calls") if given else []
    if _optional(item, columns.content_tag) is None:
        if not calls:
            raise DataError("an assistant turn has neither content nor tool_calls")
        return assistant_message("", item, calls)
    found = answer_of(*_content(item, columns))
    message = assistant_message(found.text, item, calls + found.calls)
    if found.reasoning is not None:
        if item.get("reasoning_content") not in (None, found.reasoning):
            raise DataError("an assistant turn has reasoning parts and another reasoning_content")
        message["reasoning_content"] = found.reasoning
    return message


def _turns(row: Row, columns: Columns) -> list[Row]:
    value = _needed(row, columns.messages)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise DataError(f"{columns.messages} is {quoted(value)}, expected a list of turns")
    return list(value)


def _conversation_column(row: Row, columns: set[str], keys: set[str]) -> str | None:
    """The first column that holds a list of objects with ``keys``."""
    for name in ("messages", "conversations", "conversation"):
        value = row.get(name) if name in columns else None
        if (
            isinstance(value, (list, tuple))
            and value
            and all(isinstance(item, Mapping) and keys <= set(item) for item in value)
        ):
            return name
    return None


def _sample(row: Row, row_index: int, columns: Columns, turns: list[Message]) -> Sample:
    used = columns.used()
    own_id = None if "id" in used else row.get("id")
    has_id = isinstance(own_id, (str, int)) and not isinstance(own_id, bool) and own_id != ""
    if has_id:
        used.add("id")
    return Sample(
        id=str(own_id) if has_id else str(row_index),
        row=row_index,
        messages=conversation(turns, _optional_text(row, columns.system)),
        tools=tools_of(_optional(row, columns.tools)),
        metadata={name: value for name, value in row.items() if name not in used},
    )


def _optional(row: Row, column: str | None) -> Any:
    return None if column is None else row.get(column)


def _optional_text(row: Row, column: str | None) -> str:
    value = _optional(row, column)
    return "" if value is None else text_of(value, str(column))


def _needed(row: Row, column: str | None) -> Any:
    value = _optional(row, column)
    if value is None:
        raise DataError(f"{column!r} is missing")
    return value
