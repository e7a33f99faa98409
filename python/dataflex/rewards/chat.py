"""What judges behind a chat completions API share: prompts, cache, asking within limits.

Every answer is shown to the judge with a prompt of :mod:`dataflex.rewards.judge`; equal prompts are asked once. A
reply that is a score goes into the cache at once, so that a resumed run, or a run that stopped at an error, pays for
no answer twice. Requests are counted in the run's folder, so that ``max_requests`` is a cap of the run.
"""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field, NonNegativeFloat

from dataflex.errors import RewardError
from dataflex.rewards.base import Failure, RewardBackend, settle
from dataflex.rewards.cache import ReplyCache, cache_key
from dataflex.rewards.judge import REMINDER, JudgeConfig, JudgePrompt, parse_score
from dataflex.rewards.spending import SPENDING_FILE, Spending
from dataflex.types import RewardRequest
from dataflex.utils.progress import progress_bar

if TYPE_CHECKING:
    from dataflex.rewards.chat_client import Question
    from dataflex.rewards.wire import Endpoint

CACHE_FORMAT = 1
"""Part of every cache key; grows when equal questions may get other replies than before."""


def default_cache_path() -> Path:
    """``dataflex/judge-replies.sqlite`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    return cache_folder() / "judge-replies.sqlite"


def cache_folder() -> Path:
    """``dataflex`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dataflex"


class ChatConfig(JudgeConfig):
    """What a round of questions to a chat completions API may take.

    Attributes:
        limits: Parameters that no score depends on.
    """

    limits: ClassVar[frozenset[str]] = frozenset(
        {"max_concurrency", "timeout", "deadline", "max_retries", "backoff", "max_requests", "prices", "cache_path"}
    )

    max_concurrency: int = Field(8, ge=1, description="requests under way at once")
    timeout: float = Field(60.0, gt=0, description="seconds for one request")
    deadline: float | None = Field(None, gt=0, description="seconds for one round of answers; null: no bound")
    max_retries: int = Field(6, ge=0, description="repetitions of a request that failed in passing")
    backoff: float = Field(1.0, gt=0, description="seconds before the first repetition; doubles each time, up to 60")
    max_requests: int | None = Field(
        None, ge=1, description="spend cap: requests of this run, resumed or not; null: no cap"
    )
    prices: tuple[NonNegativeFloat, NonNegativeFloat] | None = Field(
        None, description="price of a million tokens read and of a million written, for the report; null: unknown"
    )
    cache_path: Path | None = Field(
        default_factory=default_cache_path, description="SQLite file of the judge's replies; null: no cache"
    )


ChatConfigT = TypeVar("ChatConfigT", bound=ChatConfig)


class ChatReward(RewardBackend[ChatConfigT]):
    """Scores answers in [0, 1] with a judge that is asked through chat completions; a subclass says which."""

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._prompt = JudgePrompt(self.config)
        self._spending = Spending(None)

    @abstractmethod
    def endpoint(self) -> Endpoint:
        """Where requests go; called when there is something to ask."""

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """The request, without its messages."""

    @abstractmethod
    def identity(self) -> Any:
        """JSON-able: which judge this is, for the cache; not where it listens if that changes from run to run."""

    def control_tokens(self) -> frozenset[str]:
        """Control tokens of the judge's tokenizer that are to be broken up, beyond the well-known ones."""
        return frozenset()

    def facts(self) -> dict[str, Any]:
        """Name and parameters, but for what a round may take; see :meth:`RewardBackend.facts`."""
        return {"name": self.name, "config": self.config.model_dump(mode="json", exclude=set(self.config.limits))}

    def use_folder(self, folder: Path) -> None:
        """Count the run's requests in its folder; see :meth:`RewardBackend.use_folder`.

        Raises:
            RewardError: They cannot be counted there.
        """
        if self._spending.path != folder / SPENDING_FILE:
            self._spending = Spending(folder / SPENDING_FILE)

    def stats(self) -> dict[str, int | float]:
        """The counters, and with ``prices`` the ``price`` of the tokens; see :meth:`RewardBackend.stats`."""
        counted, prices = super().stats(), self.config.prices
        if prices is not None:
            read, written = self._stats.prompt_tokens, self._stats.reply_tokens
            counted["price"] = (read * prices[0] + written * prices[1]) / 1e6
        return counted

    def check(self) -> None:
        """See that what scoring needs is there.

        Raises:
            RewardError: Something is missing.
        """
        self.expect_able()

    def expect_able(self) -> None:
        """See that the packages are there; called before each round, too.

        Raises:
            RewardError: One is missing.
        """
        try:
            import httpx2  # noqa: F401
            import tenacity  # noqa: F401
        except ImportError as error:
            raise RewardError(
                f"reward backend {self.name!r} needs a package that is not installed: {error.name}",
                hint='pip install "dataflex-sdk[api]"',
            ) from error

    def score(self, requests: Sequence[RewardRequest]) -> list[float | None]:
        """Score answers; see :meth:`RewardBackend.score`.

        Raises:
            RewardError: An answer could not be scored and ``on_error`` is ``raise``; or, whatever ``on_error`` is, the
                server refused the key or model or the spend cap is reached. Scores that arrived are cached before.
        """
        self.expect_able()
        with self._stats.timed(), ReplyCache(self.config.cache_path) as cache:
            outcomes = self._outcomes(requests, cache)
        return settle(outcomes, requests, backend=self.name, on_error=self.config.on_error, stats=self._stats)

    def _outcomes(self, requests: Sequence[RewardRequest], cache: ReplyCache) -> list[float | Failure]:
        marks = self.control_tokens() if requests else frozenset()
        prompts = [self._rendered(request, marks) for request in requests]
        keys = [prompt if isinstance(prompt, Failure) else self._key(prompt) for prompt in prompts]
        questions: dict[str, Question] = {}
        known: dict[str, float | Failure] = {}
        for key, prompt in zip(keys, prompts, strict=True):
            if isinstance(key, Failure) or isinstance(prompt, Failure):
                continue
            if key not in known and key not in questions:
                reply = cache.get(key)
                score = None if reply is None else parse_score(reply)
                if score is None:
                    questions[key] = self._question(key, prompt, cache)
                    continue
                known[key] = score
            self._stats.cache_hits += 1
        known.update(self._asked(questions))
        return [key if isinstance(key, Failure) else known[key] for key in keys]

    def _asked(self, questions: Mapping[str, Question]) -> dict[str, float | Failure]:
        from dataflex.rewards.chat_client import Limits, Round

        if not questions:
            return {}
        config, endpoint = self.config, self.endpoint()
        limits = Limits(
            max_concurrency=config.max_concurrency,
            timeout=config.timeout,
            deadline=config.deadline,
            max_retries=config.max_retries,
            backoff=config.backoff,
            max_requests=config.max_requests,
        )
        with progress_bar(len(questions), "asking the judge", unit="answer") as progress:
            asking = Round(endpoint, limits, self._stats, self._spending, progress.update)
            outcomes = asking.ask(questions)
        if asking.stopped is not None:
            scored = sum(not isinstance(outcome, Failure) for outcome in outcomes.values())
            kept = " and are cached" if config.cache_path else ""
            raise RewardError(
                f"reward backend {self.name!r} stopped at {endpoint.base_url}: {asking.stopped.reason} "
                f"({scored} of {len(questions)} questions were answered{kept})",
                hint=asking.stopped.hint,
            )
        return outcomes

    def _rendered(self, request: RewardRequest, marks: frozenset[str]) -> str | Failure:
        try:
            return self._prompt.render(request, marks)
        except RewardError as error:
            return Failure(error.message, error)

    def _question(self, key: str, prompt: str, cache: ReplyCache) -> Question:
        from dataflex.rewards.chat_client import Question

        prompts = (prompt, *[prompt + REMINDER * attempt for attempt in range(1, self.config.parse_retries + 1)])
        return Question(self.body(), prompts, parse_score, partial(_keep_score, cache, key))

    def _key(self, prompt: str) -> str:
        return cache_key({"format": CACHE_FORMAT, "judge": self.identity(), "prompt": prompt, "body": self.body()})


async def _keep_score(cache: ReplyCache, key: str, score: float) -> float:
    """The score that counts: the first one is the answer to the question from then on."""
    kept = parse_score(await cache.put(key, json.dumps({"score": score})))
    return score if kept is None else kept
