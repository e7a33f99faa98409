"""A user's function as a metric: how it is called in messages, whether it can be called, and what it is.

A stored reward may be used again only as long as the function says the same. :func:`function_digest` covers what runs:
the bytecode with its constants, defaults, and the unchanging values and the functions of the same module that it refers
to by closure or by name. Comments and lines do not matter. It cannot see what other packages and files say, nor values
that change, and another Python version may write other bytecode: then answers are scored again.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

PARAMETERS = "(prediction, reference, metadata)"
"""What a metric's function is called with."""

_CACHED = type(functools.lru_cache(len))
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def function_name(function: Callable[..., Any]) -> str:
    """``module:name`` of a function; of an object that can be called, its class's."""
    if isinstance(function, functools.partial):
        return function_name(function.func)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{getattr(named, '__module__', None) or 'builtins'}:{named.__qualname__}"


def call_problem(function: Callable[..., Any]) -> str | None:
    """Why a function cannot be a metric, as far as can be told without calling it."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(_call_method(function)):
        return "is asynchronous, expected a function that returns a number"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin may not have one
        return None
    try:
        signature.bind("prediction", "reference", {})
    except TypeError as error:
        return f"has the parameters {signature}, expected {PARAMETERS}: {error}"
    return None


def function_digest(function: Callable[..., Any]) -> str:
    """SHA-256 of what can be seen of a function."""
    return hashlib.sha256(repr(_described(function, set())).encode("utf-8", "backslashreplace")).hexdigest()


def _described(value: Any, seen: set[int]) -> Any:
    """What fixes a value, of plain types only; None for what changes or cannot be seen."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, tuple):
        return ["tuple", *(_described(item, seen) for item in value)]
    if isinstance(value, frozenset):  # its order is another in each process
        return ["frozenset", *sorted(repr(_described(item, seen)) for item in value)]
    if isinstance(value, CodeType):
        return [value.co_code.hex(), value.co_names, value.co_varnames, _described(value.co_consts, seen)]
    if isinstance(value, MethodType):
        return ["method", _described(value.__func__, seen), _state(value.__self__, seen)]
    if not callable(value) or id(value) in seen:
        return None
    seen.add(id(value))
    if isinstance(value, functools.partial):
        keywords = tuple(sorted(value.keywords.items()))
        return ["partial", *(_described(item, seen) for item in (value.func, value.args, keywords))]
    if isinstance(value, FunctionType):
        return _function(value, seen)
    if isinstance(value, _CACHED):
        return ["cached", _described(value.__wrapped__, seen)]
    call = _call_method(value)
    if isinstance(value, type) or not isinstance(call, FunctionType):
        return function_name(value)
    return [function_name(value), _described(call, seen), _state(value, seen)]


def _call_method(value: object) -> Any:
    return inspect.getattr_static(type(value), "__call__", None)


def _function(function: FunctionType, seen: set[int]) -> Any:
    keywords = tuple(sorted((function.__kwdefaults__ or {}).items()))
    parts = (function.__code__, function.__defaults__, keywords, *_captured(function), *_globals(function))
    return [function_name(function), *(_described(part, seen) for part in parts)]


def _captured(function: FunctionType) -> Iterator[Any]:
    """What the function closes over."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # it is not set yet
            yield None


def _globals(function: FunctionType) -> Iterator[Any]:
    """Names of its module that the function reads: unchanging values, and functions that are written there, too."""
    for name in sorted(_names(function.__code__)):
        value = function.__globals__.get(name)
        own = isinstance(value, (FunctionType, _CACHED)) and value.__module__ == function.__module__
        if own or (value is not None and isinstance(value, (*_PLAIN, tuple, frozenset))):
            yield (name, value)


def _names(code: CodeType) -> set[str]:
    nested = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*nested)


def _state(value: object, seen: set[int]) -> Any:
    """The unchanging attributes of an object."""
    attributes = getattr(value, "__dict__", {})
    if isinstance(value, type):
        return function_name(value)
    return [(name, _described(attributes[name], seen)) for name in sorted(attributes)]
