"""One finding of the doctor, and how an attempt that may fail becomes one."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from dataflex.errors import DataflexError

Status = Literal["pass", "warn", "fail"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at.
        status: ``pass``, ``warn`` or ``fail``.
        detail: What was found.
        fix: What to do about it, where something should be done.
    """

    name: str
    status: Status
    detail: str
    fix: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def attempt(name: str, action: Callable[[], T], describe: Callable[[T], str]) -> Generator[Check, None, T | None]:
    """Yield one check: passed with what ``describe`` says of the outcome, or failed with the error of dataflex.

    Args:
        name: What is attempted.
        action: The attempt.
        describe: The outcome in words.

    Returns:
        The outcome, None if the attempt failed.
    """
    try:
        value = action()
    except DataflexError as error:
        yield Check(name, "fail", error.message, error.hint)
        return None
    yield Check(name, "pass", describe(value))
    return value
