"""The contract of a reward backend, and what the backends of dataflex share: failures, counters, ``on_error``."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from dataflex.errors import RewardError
from dataflex.plugins.configurable import ComponentConfig, ConfigT, Configurable
from dataflex.types import RewardRequest
from dataflex.utils.shown import quoted, shown

logger = logging.getLogger(__name__)

OnError = Literal["raise", "zero", "skip"]

SHOWN_FAILURES = 5
"""How many failed answers an error message spells out."""


class RewardConfig(ComponentConfig):
    """Base of every backend's parameters."""

    on_error: OnError = Field(
        default="raise",
        description="an answer that cannot be scored: raise an error, count it as reward 0, or skip the answer",
    )


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an answer has no reward.

    Attributes:
        reason: One line for the user, without secrets.
        error: The exception behind it, where a traceback helps and cannot hold a secret.
    """

    reason: str
    error: Exception | None = None


@dataclass
class RewardStats:
    """Counters of a backend since it was built.

    Attributes:
        scored: Answers that got a reward.
        failed: Answers that could not be scored, whatever ``on_error`` made of them.
        requests: Prompts sent to a judge, each attempt counted once.
        cache_hits: Answers whose judgement was there already: in the cache, or asked for by an equal answer.
        retries: Requests that were repetitions.
        unparsable: Judge replies that were not a score.
        prompt_tokens: Tokens that the judge's server says it has read; 0 where it says nothing.
        reply_tokens: Tokens that it says it has written.
        seconds: Wall-clock time spent in ``score``.
    """

    scored: int = 0
    failed: int = 0
    requests: int = 0
    cache_hits: int = 0
    retries: int = 0
    unparsable: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block's duration to ``seconds``, also when it raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


def since(before: Mapping[str, int | float], now: Mapping[str, int | float]) -> dict[str, int | float]:
    """What a backend's counters have counted since they were read before."""
    return {name: value - before.get(name, 0) for name, value in now.items()}


class RewardBackend(Configurable[ConfigT], ABC):
    """Scores answers: ``score`` is called with all requests of a round at once."""

    name: ClassVar[str] = "reward"

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._stats = RewardStats()

    def check(self) -> None:
        """Raise before training starts if the backend cannot work (missing key, package or model)."""
        return None

    def use_folder(self, folder: Path) -> None:
        """Told before the first score of a run: the folder that lives as long as the run, through every resume.

        A backend may keep there what the run must not forget. One that is never told keeps it in memory.

        Args:
            folder: The run's output folder.
        """
        return None

    def facts(self) -> dict[str, Any]:
        """What fixes an answer's reward, JSON-able: stored rewards are used again only as long as it stays the same."""
        return {"name": self.name, "config": self.config.model_dump(mode="json")}

    @abstractmethod
    def score(self, requests: Sequence[RewardRequest]) -> list[float | None]:
        """Score answers.

        Returns:
            One finite reward a request, in the order of the requests; None where the answer could not be scored and
            ``on_error`` is ``skip``. A failure is never silently a number.

        Raises:
            RewardError: An answer could not be scored and ``on_error`` is ``raise``.
        """

    def stats(self) -> dict[str, int | float]:
        """Counters since the backend was built: the fields of :class:`RewardStats`."""
        return asdict(self._stats)

    def close(self) -> None:
        """Free what the backend holds (engines, connections)."""
        return None


def settle(
    outcomes: Sequence[float | Failure],
    requests: Sequence[RewardRequest],
    *,
    backend: str,
    on_error: OnError,
    stats: RewardStats,
) -> list[float | None]:
    """Turn outcomes into rewards as ``on_error`` says, and count them.

    Args:
        outcomes: One reward or failure a request.
        requests: The requests, in the same order.
        backend: Name of the backend, for messages.
        on_error: ``raise``: any failure is an error; ``zero``: failures are reward 0; ``skip``: failures are None.
        stats: Counters that are added to.

    Raises:
        RewardError: There are failures and ``on_error`` is ``raise``.
    """
    failures = [
        (request, outcome) for request, outcome in zip(requests, outcomes, strict=True) if isinstance(outcome, Failure)
    ]
    stats.scored += len(outcomes) - len(failures)
    stats.failed += len(failures)
    if failures and on_error == "raise":
        raise RewardError(
            f"reward backend {backend!r} could not score {len(failures)} of {len(requests)} answers: "
            + _listed(failures),
            hint="on_error: skip leaves such answers out, on_error: zero counts them as reward 0",
        ) from failures[0][1].error
    if failures:
        logger.warning(
            "reward backend %r: %d of %d answers could not be scored and were %s: %s",
            backend,
            len(failures),
            len(requests),
            "counted as reward 0 (on_error: zero)" if on_error == "zero" else "left out (on_error: skip)",
            _listed(failures),
        )
    substitute = 0.0 if on_error == "zero" else None
    return [substitute if isinstance(outcome, Failure) else outcome for outcome in outcomes]


def _listed(failures: Sequence[tuple[RewardRequest, Failure]]) -> str:
    lines = [f"sample {request.sample_id!r}: {shown(failure.reason)}" for request, failure in failures[:SHOWN_FAILURES]]
    if len(failures) > SHOWN_FAILURES:
        lines.append(f"and {len(failures) - SHOWN_FAILURES} more")
    return "; ".join(lines)


def checked_rewards(rewards: object, requests: Sequence[RewardRequest], backend: str) -> list[float | None]:
    """What a backend returned, as plain floats and None.

    Args:
        rewards: What ``score`` returned.
        requests: What it was asked.
        backend: Its name, for messages.

    Raises:
        RewardError: It is not one finite number or None a request; all that are not are counted, a few are shown.
    """
    found = _listed_values(rewards)
    if found is None:
        raise RewardError(f"reward backend {backend!r} returned {_short(rewards)}, expected a list of numbers")
    if len(found) != len(requests):
        raise RewardError(f"reward backend {backend!r} returned {len(found)} rewards for {len(requests)} requests")
    numbers = [_number(reward) for reward in found]
    wrong = [
        f"{_short(reward)} for sample {request.sample_id!r}"
        for reward, number, request in zip(found, numbers, requests, strict=True)
        if reward is not None and number is None
    ]
    if wrong:
        more = f" and {len(wrong) - SHOWN_FAILURES} more" if len(wrong) > SHOWN_FAILURES else ""
        raise RewardError(
            f"reward backend {backend!r} returned {', '.join(wrong[:SHOWN_FAILURES])}{more}, expected finite numbers, "
            "or None for an answer that cannot be scored",
            hint="return plain floats: float(tensor), float(text)",
        )
    return numbers


def _listed_values(values: object) -> list[object] | None:
    """What a list, an array or a tensor holds; None for what has no values in an order."""
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        return None
    try:
        return list(values)
    except TypeError:  # a tensor without dimensions says that it can be iterated over
        return None


def _number(value: object) -> float | None:
    """A real number (also numpy's) as a float; None for what is none, or not finite."""
    if not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond 1e308
        return None
    return number if isfinite(number) else None


def _short(value: object) -> str:
    return f"{quoted(value, 60)} ({type(value).__name__})"
