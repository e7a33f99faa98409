"""Samples as bytes, and back: the same sample, or a refusal.

A sample becomes JSON. What Parquet, ``datasets`` and Python hold besides (dates, decimals, bytes, ...) is tagged, so
that it comes back as it was; a value that JSON would change (a tuple, a key that is no text, an object) is refused.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from dataflex.types import Sample

_TAG = "\0dataflex"
_KINDS: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
    "timedelta": (timedelta, lambda it: f"{it.days},{it.seconds},{it.microseconds}", lambda text: _timedelta(text)),
    "decimal": (Decimal, str, Decimal),
    "uuid": (UUID, str, UUID),
    "bytes": (bytes, lambda it: base64.b64encode(it).decode(), base64.b64decode),
}


class NotStorableError(Exception):
    """A sample that would not come back as it is."""


def turns_text(sample: Sample) -> bytes:
    """The conversation and its functions.

    Raises:
        NotStorableError: It holds values that would change.
    """
    return _text([list(sample.messages), list(sample.tools)])


def metadata_text(sample: Sample) -> bytes:
    """The other columns; empty if there are none.

    Raises:
        NotStorableError: They hold values that would change.
    """
    return _text(dict(sample.metadata)) if sample.metadata else b""


def read_turns(text: bytes) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Messages and tools."""
    messages, tools = _value(text.decode())
    return tuple(messages), tuple(tools)


def read_metadata(text: bytes) -> dict[str, Any]:
    """The other columns."""
    found: dict[str, Any] = _value(text.decode()) if text else {}
    return found


def _text(value: Any) -> bytes:
    try:
        text = _JSON.encode(value)
        stored, back = text.encode(), _value(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise NotStorableError(str(error)) from error
    if back != value and repr(back) != repr(value):  # NaN differs from itself
        raise NotStorableError("a value that JSON would change, a tuple or a key that is no text for example")
    return stored


def _value(text: str) -> Any:
    return json.loads(text, object_hook=_untagged if "\\u0000dataflex" in text else None)


def _tagged(value: Any) -> dict[str, str]:
    for name, (kind, write, _) in _KINDS.items():
        if type(value) is kind and not getattr(value, "fold", 0):  # ISO 8601 has no word for the second 2:30 of a night
            return {_TAG: name, "value": write(value)}
    raise TypeError(f"a value of the type {type(value).__name__}")


_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_tagged)


def _untagged(value: dict[str, Any]) -> Any:
    return _KINDS[value[_TAG]][2](value["value"]) if value.keys() == {_TAG, "value"} else value


def _timedelta(text: str) -> timedelta:
    days, seconds, microseconds = map(int, text.split(","))
    return timedelta(days, seconds, microseconds)
