"""What a run remembers between its steps, and across a kill."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from dataflex.errors import CheckpointError
from dataflex.training.best import BestSoFar
from dataflex.utils.foreign import foreign


@dataclass
class RunState:
    """What a checkpoint remembers besides weights, moments and random number generators.

    Attributes:
        facts: What a resumed run must share with the one it goes on from.
        step: Optimizer steps taken.
        round: Round of the current selection, 0 before the first.
        indices: Positions that the current round selected.
        selector: State of the selector.
        component: State of a mixer or a weighter, and what its curriculum notes beside it.
        scheduler: State of the learning-rate scheduler.
        scaler: State of the fp16 gradient scaler.
        history: Log entries.
        best: Best evaluation so far.
        seconds: Wall-clock seconds by kind of work.
        date: When the run began, which is the date that its template prints; ISO 8601.
        loss_sum: Sum of the losses of all steps (nats a token each).
        loss_steps: Steps in that sum: all of them, but for a run that a version began which did not count.
        runtime: Wall-clock seconds of the whole run so far.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    round: int = 0
    indices: list[int] = field(default_factory=list)
    selector: dict[str, Any] = field(default_factory=dict)
    component: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: BestSoFar = field(default_factory=BestSoFar)
    seconds: dict[str, float] = field(default_factory=dict)
    date: str | None = None
    loss_sum: float = 0.0
    loss_steps: int = 0
    runtime: float = 0.0

    def note_curriculum(self, stored: Mapping[str, Any]) -> None:
        """Take over what the curriculum says of itself."""
        self.round, self.indices, self.selector = stored["round"], stored["indices"], stored["selector"]
        self.component = stored.get("component", {})

    @property
    def curriculum(self) -> dict[str, Any]:
        """What :meth:`note_curriculum` took."""
        kept = {"round": self.round, "indices": self.indices, "selector": self.selector}
        return {**kept, "component": self.component} if self.component else kept

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` takes back."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The state that :meth:`to_json` gave; what an earlier version did not note has its default.

        Raises:
            CheckpointError: It holds something else, as a later version may write it.
        """
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(stored) - known)
        if unknown:
            raise CheckpointError(
                f"the checkpoint's state holds what this version does not know: {', '.join(unknown)}",
                hint="resume with the version of dataflex that wrote it",
            )
        with foreign(CheckpointError, "the checkpoint's state is damaged", (TypeError, ValueError)):
            return cls(**{**stored, "best": BestSoFar(**stored.get("best", {}))})
