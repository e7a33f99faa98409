"""Exceptions of other packages become errors of dataflex here: the cause in one line, and the way on.

Files, models and tokenizers are read and written by packages that raise what they like: ``OSError`` with and without a
number, bare ``Exception`` with the number in its text (tokenizers), ``RuntimeError`` over forty lines (torch), the
``repr`` of a key (transformers). A block that calls them names the kinds that it expects::

    with foreign(DataError, f"cannot read {path}", FILES):
        text = path.read_text(encoding="utf-8")

Anything else, and every error of dataflex, passes through as it is.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from dataflex.errors import DataflexError

Kinds = tuple[type[Exception], ...]
"""Exception types; ``Exception`` itself stands for instances of that very class only."""

FILES: Kinds = (OSError, UnicodeError)
"""What reading or writing a file raises."""
JSON: Kinds = (*FILES, ValueError, RecursionError)
"""What reading a JSON file raises: not UTF-8, not JSON, numbers too long or lists too deep for Python."""


@cache
def arrow_errors() -> Kinds:
    """What pyarrow raises over Parquet and Arrow files."""
    import pyarrow

    return (*FILES, pyarrow.ArrowException)


@cache
def safetensors_errors() -> Kinds:
    """What safetensors raises over its files."""
    from safetensors import SafetensorError

    return (*FILES, SafetensorError)


@cache
def model_errors() -> Kinds:
    """What transformers, peft, tokenizers and torch raise over the files of a model, a tokenizer or an adapter.

    Their code takes the content of a JSON file for what it should be: a wrong value there ends as any of the built-in
    errors.
    """
    from huggingface_hub.errors import StrictDataclassError

    return (
        *safetensors_errors(),
        *(ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, AssertionError),
        *(ImportError, MemoryError, StrictDataclassError, Exception),
    )


@contextmanager
def foreign(
    kind: type[DataflexError], what: str | Callable[[], str], expected: Kinds = FILES, *, hint: str | None = None
) -> Iterator[None]:
    """Raise exceptions of the expected kinds as an error of dataflex: ``WHAT: CAUSE``.

    Args:
        kind: The error to raise.
        what: What failed, for example ``cannot read the config.json of /m``; a function is asked when it has failed.
        expected: The kinds; see :data:`Kinds`.
        hint: What to do about it, beside what the cause itself suggests.

    Raises:
        DataflexError: Of type ``kind``, from the exception.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DataflexError) or not _is_one(error, expected):
            raise
        cause, way_on = explain(error)
        hints = "; ".join(text for text in (way_on, hint) if text)
        raise kind(f"{what() if callable(what) else what}: {cause}", hint=hints or None) from error


def explain(error: BaseException) -> tuple[str, str | None]:
    """The cause of a foreign exception in one line, and what can be done about it (None: nothing general)."""
    number = _error_number(error)
    if number is not None:
        return _system_error(number, error)
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"not {error.encoding.upper()} text: byte 0x{byte:02x} at position {error.start}", None
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})", None
    if _is_safetensor_error(error):
        return f"the file is damaged or cut off ({str(error).strip()})", "copy or download the file again"
    if isinstance(error, RecursionError):
        return "values in it are nested too deeply", None
    if isinstance(error, MemoryError):
        return "not enough memory", None
    if isinstance(error, RuntimeError) and (shapes := _other_shapes(str(error))):
        return shapes, None
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing or unknown" if error.args else "a key is missing", None
    return _first_line(error), None


def _is_one(error: Exception, expected: Kinds) -> bool:
    return any(type(error) is Exception if kind is Exception else isinstance(error, kind) for kind in expected)


_IN_TEXT = re.compile(r"\((?:os error|errno) (\d+)\)|\[[Ee]rrno (\d+)\]")


def _error_number(error: BaseException) -> int | None:
    """The system's error number; packages written in Rust give it in the text only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _IN_TEXT.search(str(error))
    return int(found[1] or found[2]) if found else None


def _system_error(number: int, error: BaseException) -> tuple[str, str | None]:
    """Cause and way on of an error of the system, with the file where it is known."""
    name = getattr(error, "filename", None)
    place = f": {os.fsdecode(name) if isinstance(name, bytes) else name}" if name is not None else ""
    cause, hint = _SYSTEM.get(number, (os.strerror(number), None))
    return f"{cause}{place}", hint


_FULL = "free some space, or name a folder on another disk"
_SYSTEM: dict[int, tuple[str, str | None]] = {
    errno.ENOSPC: ("the disk is full", _FULL),
    errno.EDQUOT: ("the disk quota is used up", _FULL),
    errno.EACCES: ("permission denied", "give this user access, or name another place"),
    errno.EPERM: ("not permitted", "give this user access, or name another place"),
    errno.EROFS: ("the disk is read-only", "name a folder on another disk"),
    errno.EISDIR: ("it is a folder, not a file", None),
    errno.ENOTDIR: ("a file stands where a folder is needed", "remove the file, or name another folder"),
    errno.EEXIST: ("it exists already", "remove it, or name another place"),
    errno.ENOENT: ("no such file or folder", None),
    errno.ENAMETOOLONG: ("the name is too long", None),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n)"),
    errno.EIO: ("the disk cannot be read or written", "check the disk or the network mount"),
    errno.ESTALE: ("the network mount is stale", "check the disk or the network mount"),
}

_SHAPE = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch\.Size\((.*?)\) from checkpoint, "
    r"the shape in current model is torch\.Size\((.*?)\)"
)


def mismatched_shapes(text: str) -> list[tuple[str, list[int], list[int]]]:
    """Name, stored shape and the model's own, from what torch raises over tensors that do not fit."""
    found = _SHAPE.findall(text)
    return [(name, json.loads(stored), json.loads(own)) for name, stored, own in found]


def _other_shapes(text: str) -> str | None:
    """The first tensor of another shape in the file than in the model, and how many more there are."""
    found = mismatched_shapes(text)
    if not found:
        return None
    name, stored, own = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{name} has shape {stored} in the file, {own} in the model{more}"


def _is_safetensor_error(error: BaseException) -> bool:
    from safetensors import SafetensorError

    return isinstance(error, SafetensorError)


def _first_line(error: BaseException) -> str:
    """The first line with more than a heading, with the type's name where the text alone says little."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return f"{type(error).__name__} without a message"
    heading = lines[0].endswith(":") and len(lines) > 1
    text = f"{lines[0]} {lines[1]}" if heading else lines[0]
    plain = isinstance(error, (OSError, ValueError, ImportError)) or type(error) in (Exception, RuntimeError)
    return text if plain else f"{type(error).__name__}: {text}"
