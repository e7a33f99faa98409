"""Pieces of a conversation as datasets spell them, turned into :class:`dataflex.types.Message`.

Arrow tables fill absent fields with nulls, so None means absent everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from dataflex.data.plain import plain
from dataflex.data.refusals import check_text
from dataflex.data.turns import KNOWN_KEYS
from dataflex.errors import DataError
from dataflex.types import Message, Role, ToolCall
from dataflex.utils.shown import quoted

_LOSS_KEYS = ("loss_weight", "weight")
_READ_KEYS = frozenset({*_LOSS_KEYS, *KNOWN_KEYS, "function_call"})
"""Keys of a turn that are read whatever its form."""
_REASONING_PARTS = ("reasoning", "thinking")


def text_of(value: Any, what: str) -> str:
    """The text of a content field: a string, or a list of typed text parts, which are joined.

    Args:
        value: ``"text"``, ``[{"type": "text", "text": "..."}]`` or the same with ``value`` instead of ``text``.
        what: Name of the field in error messages.

    Raises:
        DataError: A part that is not text, or something that is neither string nor list.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return "".join(_part_text(part, what, ("text",)) for part in value)
    raise DataError(f"{what} is {quoted(value)}, expected text")


@dataclass(frozen=True, slots=True)
class Answer:
    """The content of an assistant turn.

    Attributes:
        text: What it says.
        reasoning: What it thinks before; None if no part says so.
        calls: Its function calls.
    """

    text: str
    reasoning: str | None
    calls: list[ToolCall]


def answer_of(value: Any, what: str) -> Answer:
    """An assistant's content: a string, or a list of typed parts, of which those of a kind are joined.

    Args:
        value: As for :func:`text_of`; parts may also have the type ``reasoning`` (or ``thinking``), or ``tool_call``,
            with the call or its JSON text as ``value``.
        what: Name of the field in error messages.

    Raises:
        DataError: A part of another type, or without the value of its type.
    """
    if not isinstance(value, (list, tuple)):
        return Answer(text_of(value, what), None, [])
    texts, thoughts, calls = [], [], []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "tool_call":
            calls += tool_calls_of(_tool_call_part(part, what), what)
        elif kind in _REASONING_PARTS:
            thoughts.append(_part_text(part, what, _REASONING_PARTS))
        else:
            texts.append(_part_text(part, what, ("text", *_REASONING_PARTS, "tool_call")))
    return Answer("".join(texts), "".join(thoughts) if thoughts else None, calls)


def _tool_call_part(part: Mapping[str, Any], what: str) -> Any:
    found = next((part[key] for key in ("value", "tool_call", "text") if part.get(key) is not None), None)
    if found is None and "function" not in part and "name" not in part:
        raise DataError(f"{what} has a tool_call part without 'value': {quoted(part)}")
    return part if found is None else found


def _part_text(part: Any, what: str, kinds: Sequence[str]) -> str:
    if not isinstance(part, Mapping):
        raise DataError(f"{what} has a part {quoted(part)}, expected an object with 'type' and 'text'")
    kind = part.get("type")
    if kind not in kinds:
        raise DataError(f"{what} has a part of type {kind!r}; only {', '.join(kinds)} parts are supported")
    text = next((part[key] for key in ("text", "value", kind) if part.get(key) is not None), None)
    if not isinstance(text, str):
        raise DataError(f"{what} has a {kind} part without 'text' or 'value': {quoted(part)}")
    return text


def tools_of(value: Any) -> tuple[dict[str, Any], ...]:
    """Function definitions from a list, or from a JSON string of one, in OpenAI's shape.

    A bare ``{"name": ..., "parameters": ...}`` is wrapped as ``{"type": "function", "function": {...}}``, which is
    what chat templates expect.

    Raises:
        DataError: Not a list of definitions with a name.
    """
    if isinstance(value, str):
        value = _json(value, "tools") if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"tools is {quoted(value)}, expected a list of function definitions or its JSON text")
    return tuple(_tool(item) for item in value)


def _tool(item: Any) -> dict[str, Any]:
    if isinstance(item, str):
        item = _json(item, "tools")
    function = item.get("function") if isinstance(item, Mapping) and item.get("function") is not None else item
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"tools has {quoted(item)}, expected a function definition with a 'name'")
    return {"type": "function", "function": plain(function)}


def tool_calls_of(value: Any, what: str) -> list[ToolCall]:
    """Function calls from one call, a list of them, or the JSON text of either.

    A call is ``{"name": ..., "arguments": ...}``, bare or under ``function``; arguments may be JSON text. Its ``id``
    is kept, since some templates write it.

    Raises:
        DataError: Not a function call.
    """
    if isinstance(value, str):
        value = _json(value, what)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise DataError(f"{what} is an empty list, expected function calls")
    return [_tool_call(call, what) for call in calls]


def _tool_call(call: Any, what: str) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) and call.get("function") is not None else call
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f"{what} has {quoted(call)}, expected an object with 'name' and 'arguments'")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{what} arguments") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise DataError(f"{what} has arguments {quoted(arguments)}, expected an object")
    made: ToolCall = {"type": "function", "function": {"name": function["name"], "arguments": plain(arguments)}}
    own_id = call.get("id")
    return {"id": str(own_id), **made} if own_id is not None else made


def assistant_message(content: str, item: Mapping[str, Any], calls: list[ToolCall] | None = None) -> Message:
    """An assistant turn; a ``loss_weight`` or ``weight`` of 0, or ``train: false``, takes it out of the loss.

    Args:
        content: Its text.
        item: The turn as the dataset has it.
        calls: Its function calls.

    Raises:
        DataError: A weight other than 0 and 1, or a ``train`` that is no boolean.
    """
    message: Message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = calls
    weights = [item[key] for key in _LOSS_KEYS if item.get(key) is not None]
    if any(weight not in (0, 1) for weight in weights):
        raise DataError(f"an assistant turn has loss weight {weights[0]!r}; only 0 and 1 are supported")
    train = item.get("train")
    if train is not None and not isinstance(train, bool):
        raise DataError(f"an assistant turn has train {quoted(train)}, expected true or false")
    if 0 in weights or train is False:
        message["train"] = False
    return message


def plain_message(role: Role, content: str) -> Message:
    """A turn of text."""
    return {"role": role, "content": content}


def with_other_keys(message: Message, item: Mapping[str, Any], read: Container[str | None]) -> Message:
    """``message`` with the other keys of a turn, which its template may read (``reasoning_content``, ``name``, ...).

    Args:
        message: The turn.
        item: The turn as the dataset has it.
        read: Keys of ``item`` that ``message`` was made of.

    Raises:
        DataError: A value has no form in JSON.
    """
    others = {
        str(key): plain(value)
        for key, value in item.items()
        if value is not None and key not in read and key not in _READ_KEYS
    }
    return cast("Message", others | message) if others else message


def conversation(turns: Sequence[Message], system: str | None = None) -> tuple[Message, ...]:
    """``turns`` with the row's system text in front, checked.

    Raises:
        DataError: No turns, a system turn that is not the first, or two different system texts.
    """
    messages = list(turns)
    first = messages[0] if messages else None
    if system and first is not None and first["role"] == "system":
        if first["content"] != system:
            raise DataError("the row has a system turn and a different text in its system column")
    elif system:
        messages.insert(0, {"role": "system", "content": system})
    late = [i for i, message in enumerate(messages) if message["role"] == "system" and i > 0]
    if late:
        raise DataError(f"turn {late[0]} is a system turn; a system turn must be the first")
    if all(message["role"] == "system" for message in messages):
        raise DataError("the conversation is empty")
    return tuple(messages)


def _json(text: str, what: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:  # not JSON, or numbers that are too long for Python
        raise DataError(f"{what} is not valid JSON ({error}): {quoted(text)}") from error
    check_text(value, what)  # an escape inside text, which the row's own check cannot see
    return value
