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
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from dataflex.utils.distributed import Ranks

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from dataflex.data.dataset import TokenizedDataset
    from dataflex.data.templates import ChatTemplate

Autocast = Callable[[], AbstractContextManager[Any]]
"""Opens the context in which the trainer runs its forward passes (mixed precision)."""

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(TypedDict):
    """A function call of the assistant: OpenAI's shape, arguments as an object."""

    type: Literal["function"]
    function: dict[str, Any]


class _MessageBase(TypedDict):
    role: Role
    content: str


class Message(_MessageBase, total=False):
    """One turn of a conversation.

    ``tool_calls`` belongs to assistant turns. ``train`` is False for an assistant turn that carries no loss
    (default True).
    """

    tool_calls: list[ToolCall]
    train: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a dataset, in the form that every later part understands.

    Attributes:
        id: The row's own ``id`` if it has one, else its row number as text.
        row: Row number in the source (0-based), before any filter.
        messages: The conversation in its order; at most one system turn, which comes first.
        tools: Definitions of the functions that the assistant may call (JSON schema objects).
        metadata: Columns that are not part of the conversation (``task``, ``reference``, ...).
    """

    id: str
    row: int
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last assistant turn (all turns if there is none)."""
        last = self._last_assistant()
        return self.messages if last is None else self.messages[:last]

    @property
    def reference(self) -> str | None:
        """The text of the last assistant turn, or None."""
        last = self._last_assistant()
        return None if last is None else self.messages[last]["content"]

    def _last_assistant(self) -> int | None:
        turns = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        return turns[-1] if turns else None


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


@dataclass(frozen=True)
class SelectionContext:
    """What a selector may use at one selection. It is the same on every rank but for ``ranks.index``.

    Attributes:
        model: The model in its current state, adapters included, unwrapped. A selector leaves parameters,
            ``.grad``, train/eval mode and RNG state as it found them.
        tokenizer: The tokenizer that the datasets were tokenised with.
        template: The chat template that the datasets were rendered with.
        train_dataset: n candidates.
        eval_dataset: q target samples, or None.
        num_samples: How many candidates to select.
        step: Optimizer steps taken so far.
        round: Which selection this is, from 1.
        num_rounds: How many selections the run makes.
        total_samples: How many candidates all selections of the run ask for together.
        seed: Seed of the run; a selector derives its own streams from (seed, round).
        output_dir: Folder of the run; rounds write below it.
        optimizer: The optimizer in its current state, or None before training.
        autocast: Returns the context manager under which the trainer runs its forward passes.
        ranks: The processes of the run. Every rank must return the same selection; work can be shared among them.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    train_dataset: TokenizedDataset
    eval_dataset: TokenizedDataset | None
    num_samples: int
    step: int
    round: int
    num_rounds: int
    total_samples: int
    seed: int
    output_dir: Path
    optimizer: torch.optim.Optimizer | None
    autocast: Autocast
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class Selection:
    """The outcome of one selection.

    Attributes:
        indices: ``(num_samples,)`` int64 positions in the candidate dataset, best first.
        scores: ``(n,)`` float64 score of every candidate, -inf for unusable ones; None if the method has none.
        selector: Name of the selector.
        step: Optimizer steps taken before the selection.
        round: Which selection of the run, from 1.
        report: Plain JSON facts for the report (counts, seconds, rewards, ...).
        repeats: A position may occur more than once: the draw was one with replacement.
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float64] | None
    selector: str
    step: int
    round: int
    report: Mapping[str, Any] = field(default_factory=dict)
    repeats: bool = False


def group_names(samples: Sequence[Sample], column: str) -> list[str | None]:
    """The value of ``column`` of each sample as text, None where a sample has none."""
    return [None if (value := sample.metadata.get(column)) is None else str(value) for sample in samples]
