"""Words for wrong values: shortened, secrets left out, the nearest name offered."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

from dataflex.utils.shown import quoted

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]
"""Where a value sits below another one: keys of mappings and positions in lists."""

REDACTED = "(redacted)"
LITERAL_SECRET = (
    "expected the name of an environment variable, in capitals, got what looks like the secret itself; put it in the "
    "environment and name that variable here"
)

_SECRET_KEY = re.compile(r"(^|_)(api_key|secret|password|webhook_url|(hub|auth|access)_token)$")
_SECRET_TEXT = re.compile(r"\b(sk-|hf_)[A-Za-z0-9_-]{8,}")
_ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_EXPECTED = {
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "string_too_short": "text that is not empty",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def is_secret(key: str) -> bool:
    """Whether a key holds a secret, by its name."""
    return _SECRET_KEY.search(key) is not None


def is_environment_name(value: object) -> bool:
    """Whether ``value`` has the shape of an environment variable's name: capitals, digits, underscores."""
    return isinstance(value, str) and _ENVIRONMENT_NAME.fullmatch(value) is not None


def literal_secrets(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths below ``value`` where a key that holds a secret has something else than an environment variable's name."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(key, str) and is_secret(key) and item is not None and not is_environment_name(item):
            yield (*path, key)
        else:
            yield from literal_secrets(item, (*path, key))


def redact(value: Any, key: str = "") -> Any:
    """A copy of ``value`` without literal secrets."""
    if is_secret(key) and value is not None and not is_environment_name(value):
        return REDACTED
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    return _SECRET_TEXT.sub(REDACTED, value) if isinstance(value, str) else value


def shown(value: Any, key: str = "") -> str:
    """``value`` for a message: short and without secrets."""
    if value is None:
        return "nothing (null)"
    return quoted(redact(value, key))


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?`` for the closest of ``names``, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def explain_all(error: ValidationError, model: type[BaseModel]) -> list[tuple[Path, str]]:
    """Where each problem of a validation error lies, and :func:`explain` of it with the keys that are known there.

    Args:
        error: What pydantic raised for ``model``.
        model: The model that was validated.
    """
    return [(problem["loc"], explain(problem, fields_at(model, problem["loc"][:-1]))) for problem in error.errors()]


def fields_at(model: type[BaseModel], path: Path) -> list[str]:
    """Names of the fields of the model that a path below ``model`` leads to; none if it leads elsewhere."""
    inner: type[BaseModel] | None = model
    for part in path:
        info = inner.model_fields.get(str(part)) if inner is not None else None
        inner = _model_in(info.annotation) if info is not None else None
    return list(inner.model_fields) if inner is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The one model that an annotation speaks of, inside a union or on its own."""
    options = [option for option in (annotation, *get_args(annotation)) if hasattr(option, "model_fields")]
    return options[0] if len(options) == 1 else None


def explain(error: ErrorDetails, known: Iterable[str] = ()) -> str:
    """One pydantic error in the words of a configuration file: key, expected, got.

    Args:
        error: One of ``ValidationError.errors()``.
        known: Names that the mapping around an unknown key accepts.
    """
    path = [str(part) for part in error["loc"]]
    name, key = ".".join(path) or "value", path[-1] if path else ""
    kind, context = error["type"], error.get("ctx", {})
    got = f"got {shown(error['input'], key)}"
    if isinstance(error["input"], bool) and kind in ("string_type", "literal_error"):
        got += " (YAML reads yes, no, on and off as true and false: in quotes it is text)"
    if kind == "missing":
        return f"{name} is required"
    if kind == "extra_forbidden":
        return f"unknown key {name!r}{nearest(key, known)}"
    if kind == "value_error":
        return f"{name}: {context['error']}"
    if kind == "literal_error":
        choices = re.findall("'([^']*)'", context["expected"])
        near = nearest(error["input"], choices) if isinstance(error["input"], str) else ""
        return f"{name}: expected {context['expected']}, {got}{near}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"{name}: expected {words} {context[bound]}, {got}"
    expected = _EXPECTED.get(kind)
    return f"{name}: expected {expected}, {got}" if expected else f"{name}: {error['msg']}, {got}"
