"""Turns as templates see them: they may read any key, and which they read is known afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dataflex.types import Message

KNOWN_KEYS = frozenset({"role", "content", "tool_calls", "train"})
"""Keys of a turn that dataflex itself knows; ``train`` is not shown to templates."""

Read = set[tuple[str, str]]
"""Keys that a template asked for, each with the role of its turn."""


class _Turn(dict[str, Any]):
    """A turn that notes which of its keys are asked for."""

    __slots__ = ("_read", "_role")

    def __init__(self, turn: dict[str, Any], read: Read) -> None:
        super().__init__(turn)
        self._read, self._role = read, str(turn["role"])

    def __getitem__(self, key: str) -> Any:
        self._read.add((self._role, key))
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._read.add((self._role, key))
        return super().get(key, default)

    def items(self) -> Any:
        """All keys with their values: a template that writes the whole turn reads them all."""
        self._read_all()
        return super().items()

    def values(self) -> Any:
        """All values."""
        self._read_all()
        return super().values()

    def __iter__(self) -> Iterator[str]:
        self._read_all()
        return super().__iter__()

    def _read_all(self) -> None:
        self._read.update((self._role, key) for key in dict.keys(self))


def template_turns(messages: Sequence[Message], read: Read) -> list[dict[str, Any]]:
    """The turns for a template; what it asks for is added to ``read``.

    Turns with known keys only stay plain dicts.
    """
    turns = [{key: value for key, value in message.items() if key != "train"} for message in messages]
    return [turn if KNOWN_KEYS.issuperset(turn) else _Turn(turn, read) for turn in turns]
