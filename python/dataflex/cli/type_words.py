"""Types of parameters in words, for people who write YAML."""

from __future__ import annotations

import pathlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

_PLAIN: dict[Any, str] = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    pathlib.Path: "path",
    type(None): "null",
    Any: "anything",
    dict: "mapping",
    Mapping: "mapping",
    list: "list",
    tuple: "list",
    Sequence: "list",
    Callable: "function (from Python)",
}


def type_words(annotation: Any) -> str:
    """What a parameter accepts, in words.

    Args:
        annotation: Its type.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return type_words(inner[0])
    if origin is typing.Literal:
        return _joined([_literal(value) for value in inner])
    if origin in (Union, types.UnionType):
        return _joined(list(dict.fromkeys(type_words(option) for option in inner)))
    if origin in (list, tuple, Sequence) and inner:
        return f"list of {_plural(type_words(inner[0]))}"
    plain = _PLAIN.get(origin or annotation)
    if plain is not None:
        return plain
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"mapping ({', '.join(annotation.model_fields)})"
    return f"a {getattr(annotation, '__name__', 'value')} (from Python)"


def _literal(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _joined(options: Sequence[str]) -> str:
    return options[0] if len(options) == 1 else f"{', '.join(options[:-1])} or {options[-1]}"


def _plural(words: str) -> str:
    return {"text": "texts", "integer": "integers", "number": "numbers", "path": "paths", "mapping": "mappings"}.get(
        words, words
    )
