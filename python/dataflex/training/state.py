"""What a run remembers between its steps, and across a kill."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from dataflex.training.best import BestSoFar


@dataclass
class RunState:
    """What a checkpoint remembers besides weights, moments and random number generators.

    Attributes:
        facts: What a resumed run must share with the one it goes on from.
        step: Optimizer steps taken.
        round: Round of the current selection, 0 before the first.
        indices: Positions that the current round selected.
        selector: State of the selector.
        scheduler: State of the learning-rate scheduler.
        scaler: State of the fp16 gradient scaler.
        history: Log entries.
        best: Best evaluation so far.
        seconds: Wall-clock seconds by kind of work.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    round: int = 0
    indices: list[int] = field(default_factory=list)
    selector: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: BestSoFar = field(default_factory=BestSoFar)
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` takes back."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """The state that :meth:`to_json` gave."""
        return cls(**{**stored, "best": BestSoFar(**stored["best"])})
