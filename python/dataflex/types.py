"""Values that travel between the parts, and the letters that name their dimensions.

Shapes are written ``(b, t)`` with one letter a dimension:

====== ==================================================
letter meaning
====== ==================================================
b      batch (rows computed together)
t      tokens of a (padded) sequence
p      trainable parameters, in ``named_parameters`` order
k      dimension of the projected features
n      training samples (candidates)
q      evaluation samples (targets)
m      Monte Carlo answers of one prompt
====== ==================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

Autocast = Callable[[], AbstractContextManager[Any]]
"""Opens the context in which the trainer runs its forward passes (mixed precision)."""

Role = Literal["system", "user", "assistant", "tool"]


class _ToolCallBase(TypedDict):
    type: Literal["function"]
    function: dict[str, Any]


class ToolCall(_ToolCallBase, total=False):
    """A function call of the assistant: OpenAI's shape, arguments as an object."""

    id: str


class _MessageBase(TypedDict):
    role: Role
    content: str


class Message(_MessageBase, total=False):
    """One turn of a conversation.

    ``tool_calls`` belongs to assistant turns. ``train`` is False for an assistant turn that carries no loss
    (default True). A turn of a dataset keeps its other keys too, those below and any others: they reach the chat
    template, which may read them.
    """

    tool_calls: list[ToolCall]
    train: bool
    reasoning_content: str
    name: str
    tool_call_id: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a dataset, in the form that every later part understands.

    Attributes:
        id: The row's own ``id`` if it has one, else its row number as text.
        row: Row number in the source (0-based), before any filter.
        messages: The conversation in its order; at most one system turn, which comes first.
        tools: Definitions of the functions that the assistant may call (JSON schema objects).
        metadata: Columns that are not part of the conversation (``task``, ``reference``, ...).
        source: Name of the dataset that the row is from, as it was asked for; empty for rows that came as objects.
    """

    id: str
    row: int
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = field(default="", compare=False)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns that the model answers: all, without the last if that is the assistant's.

        A conversation that ends with a user's or a tool's turn is asked as it stands.
        """
        return self.messages[:-1] if self._answered else self.messages

    @property
    def reference(self) -> str | None:
        """The text of the answer to :attr:`prompt`; None if there is none, or if it only calls functions."""
        if not self._answered:
            return None
        answer = self.messages[-1]
        return None if answer.get("tool_calls") and not answer["content"].strip() else answer["content"]

    @property
    def _answered(self) -> bool:
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"


@dataclass(frozen=True, slots=True)
class RewardRequest:
    """One answer to be scored.

    Attributes:
        sample_id: ``Sample.id`` of the evaluation sample.
        messages: The prompt: every turn before the answer.
        prediction: The text of the answer.
        reference: The reference answer, where the dataset has one.
        metadata: The sample's other columns.
    """

    sample_id: str
    messages: tuple[Message, ...]
    prediction: str
    reference: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def group_names(samples: Sequence[Sample], column: str) -> list[str | None]:
    """The value of ``column`` of each sample as text, None where a sample has none."""
    return [group_name(sample.metadata, column) for sample in samples]


def group_name(metadata: Mapping[str, Any], column: str) -> str | None:
    """The value of ``column`` as text, None where there is none."""
    value = metadata.get(column)
    return None if value is None else str(value)
