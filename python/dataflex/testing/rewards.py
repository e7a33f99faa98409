"""A reward backend for tests: no model, no network, never a constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from dataflex.rewards.base import Failure, RewardBackend, RewardConfig, settle
from dataflex.types import RewardRequest


class EchoConfig(RewardConfig):
    """Parameters of :class:`EchoReward`."""

    fails_on: str | None = Field(None, min_length=1, description="an answer with this text in it cannot be scored")


class EchoReward(RewardBackend[EchoConfig]):
    """Rewards an answer by its number of characters, and remembers what it was asked.

    The reward is (characters mod 7) / 6: it lies in [0, 1], and answers of an untrained model differ in it.

    Attributes:
        received: Every request so far, in order.

    Example:
        >>> EchoReward().score([RewardRequest("0", (), "abc")])
        [0.5]
    """

    name: ClassVar[str] = "echo"
    Config = EchoConfig

    def __init__(self, **params: object) -> None:
        super().__init__(**params)
        self.received: list[RewardRequest] = []

    def score(self, requests: Sequence[RewardRequest]) -> list[float | None]:
        """Score answers; see :meth:`dataflex.RewardBackend.score`."""
        self.received.extend(requests)
        outcomes = [self._outcome(request) for request in requests]
        return settle(outcomes, requests, backend=self.name, on_error=self.config.on_error, stats=self._stats)

    def _outcome(self, request: RewardRequest) -> float | Failure:
        if self.config.fails_on is not None and self.config.fails_on in request.prediction:
            return Failure(f"the answer holds {self.config.fails_on!r} (fails_on)")
        return len(request.prediction) % 7 / 6
