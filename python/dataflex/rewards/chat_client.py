"""Asking an OpenAI-compatible server many questions at once, within limits.

A fixed number of workers takes questions one by one. A request that fails in passing (408, 409, 429, 5xx, connection
errors, time-outs, replies that are not a chat completion) is repeated with exponential backoff and jitter, never
sooner than the server's Retry-After. Where going on is pointless (401, 402, 403, 404, a redirect, no quota left, the
request cap, replies that cannot be kept) no further request is sent, those under way are finished and kept, and the
round reports why it stopped.

Only what a judge has said to its end is a judgement: a reply that was cut, filtered or refused, or whose choices do not
agree, is asked for again like one that is not a score.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from dataflex.errors import RewardError
from dataflex.rewards.base import Failure, RewardStats
from dataflex.rewards.completion import completion, explanation, judgement, usage
from dataflex.rewards.spending import Spending
from dataflex.rewards.wire import Client, Endpoint, HttpReply, WireError, run

logger = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 60.0
MAX_RETRY_AFTER_SECONDS = 600.0
"""A server that asks for more patience than this is given up on."""

_PASSING = frozenset({408, 409, 429})
_POINTLESS = frozenset({301, 302, 303, 307, 308, 401, 402, 403, 404})
_HINTS = {
    401: "is the key in the environment variable that api_key names the right one for this server?",
    403: "may this key use this model?",
    404: "check api_url (it usually ends in /v1 or /v1/chat/completions) and model_name",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a round may take.

    Attributes:
        max_concurrency: Requests under way at once.
        timeout: Seconds for one request.
        deadline: Seconds for the whole round, or None.
        max_retries: Repetitions of a request that failed in passing.
        backoff: Seconds before the first repetition; doubles each time.
        max_requests: Requests of the run, or None.
    """

    max_concurrency: int
    timeout: float
    deadline: float | None
    max_retries: int
    backoff: float
    max_requests: int | None


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask.

    Attributes:
        body: The request, without messages.
        prompts: The user message of the first attempt, the second, ...: as many as may be asked.
        parse: Turns a reply into a number, or None if it is to be asked for again.
        keep: Stores the number of a reply that was paid for, and returns the one that counts.
    """

    body: Mapping[str, Any]
    prompts: tuple[str, ...]
    parse: Callable[[str], float | None]
    keep: Callable[[float], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a round ended before its questions did."""

    reason: str
    hint: str | None


class _PassingError(Exception):
    """The same request may succeed later."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class _FinalError(Exception):
    """The same request will fail again."""


class Round:
    """One round of questions. After :meth:`ask`, ``stopped`` says why it ended early, if it did.

    Args:
        endpoint: The server.
        limits: Bounds.
        stats: Counters that are added to.
        spending: Counts the requests of the run.
        on_done: Called after every question that is done.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        limits: Limits,
        stats: RewardStats,
        spending: Spending,
        on_done: Callable[[], object] = lambda: None,
    ) -> None:
        self.stopped: Stopped | None = None
        self._endpoint = endpoint
        self._limits = limits
        self._stats = stats
        self._spending = spending
        self._on_done = on_done
        self._end: float | None = None
        self._warned = False
        self._jitter = random.Random()  # its own: the global generator belongs to the training run

    def ask(self, questions: Mapping[str, Question]) -> dict[str, float | Failure]:
        """Ask all questions; one number or failure each."""
        return run(self._ask_all(questions))

    async def _ask_all(self, questions: Mapping[str, Question]) -> dict[str, float | Failure]:
        self._wake = asyncio.Event()
        if self._limits.deadline is not None:
            self._end = _now() + self._limits.deadline
        outcomes: dict[str, float | Failure] = {}
        waiting = iter(questions.items())
        async with Client(self._endpoint) as client:
            workers = [
                asyncio.create_task(self._work(client, waiting, outcomes))
                for _ in range(min(self._limits.max_concurrency, len(questions)))
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
        return outcomes

    async def _work(
        self,
        client: Client,
        waiting: Iterator[tuple[str, Question]],
        outcomes: dict[str, float | Failure],
    ) -> None:
        for key, question in waiting:
            try:
                async with asyncio.timeout_at(self._end):
                    outcomes[key] = await self._answer(client, question)
            except (_PassingError, _FinalError) as error:
                outcomes[key] = Failure(str(error))
            except TimeoutError:
                outcomes[key] = Failure(self._late())
            # Beyond the deadline: what was paid for is kept.
            outcomes[key] = await self._kept(question, outcomes[key])
            self._on_done()

    async def _answer(self, client: Client, question: Question) -> float | Failure:
        shown = ""
        for attempt, prompt in enumerate(question.prompts):
            self._stats.retries += attempt > 0
            reply = await self._persistently(client, question.body, prompt)
            found = judgement(reply.json, question.parse)
            if isinstance(found, float):
                return found
            self._stats.unparsable += 1
            shown = self._endpoint.redacted(found)
        return Failure(f"the judge's reply is not a score, asked {len(question.prompts)} times: {shown}")

    async def _kept(self, question: Question, outcome: float | Failure) -> float | Failure:
        if isinstance(outcome, Failure):
            return outcome
        try:
            return await question.keep(outcome)
        except RewardError as error:
            self._stop(error.message, error.hint)
            return Failure(error.message)

    async def _persistently(self, client: Client, body: Mapping[str, Any], prompt: str) -> HttpReply:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_PassingError),
            wait=self._wait,
            stop=self._gives_up,
            sleep=self._sleep,
            before_sleep=self._count_retry,
            reraise=True,
        )
        reply: HttpReply = await retrying(self._send, client, body, prompt)
        return reply

    def _wait(self, state: RetryCallState) -> float:
        doubled = self._limits.backoff * 2.0 ** min(state.attempt_number - 1, 30)
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, _PassingError) else 0.0
        return max(asked, min(doubled, MAX_BACKOFF_SECONDS) + self._jitter.uniform(0, self._limits.backoff))

    def _gives_up(self, state: RetryCallState) -> bool:
        too_late = self._end is not None and _now() + state.upcoming_sleep > self._end
        too_long = state.upcoming_sleep > MAX_RETRY_AFTER_SECONDS
        return state.attempt_number > self._limits.max_retries or too_late or too_long

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), seconds)

    def _count_retry(self, state: RetryCallState) -> None:
        self._stats.retries += 1

    async def _send(self, client: Client, body: Mapping[str, Any], prompt: str) -> HttpReply:
        """One request: a reply that is a chat completion."""
        self._spend()
        extra = body.get("extra_body", {})
        sent = {name: value for name, value in body.items() if name != "extra_body"}
        messages = [{"role": "user", "content": prompt}]
        try:
            reply = await client.ask({**sent, **extra, "messages": messages}, self._limits.timeout)
        except WireError as error:
            raise _PassingError(str(error)) from None
        if not 200 <= reply.status < 300:
            raise self._explained(reply)
        try:
            found = completion(reply)
        except ValueError:
            raise _PassingError(f"not a chat completion: {self._endpoint.redacted(reply.text)!r}") from None
        read, written = usage(found)
        self._stats.prompt_tokens += read
        self._stats.reply_tokens += written
        self._compare_models(str(body["model"]), found.get("model"))
        return reply

    def _spend(self) -> None:
        """Count a request that is about to be sent.

        Raises:
            _FinalError: It is not to be sent.
        """
        cap = self._limits.max_requests
        if cap is not None and self._spending.requests >= cap:
            self._stop(f"max_requests: all {cap} requests are spent", self._spending.hint)
        if self.stopped is not None:
            raise _FinalError(f"not asked: {self.stopped.reason}")
        if self._end is not None and _now() >= self._end:
            raise _FinalError(self._late())
        try:
            self._spending.add()
        except RewardError as error:
            self._stop(error.message, error.hint)
            raise _FinalError(f"not asked: {error.message}") from None
        self._stats.requests += 1

    def _explained(self, reply: HttpReply) -> Exception:
        said, code = explanation(reply)
        reason = self._endpoint.redacted(f"HTTP {reply.status}: {said}")
        if reply.status in _POINTLESS or code == "insufficient_quota":
            self._stop(reason, _HINTS.get(reply.status))
        elif reply.status in _PASSING or reply.status >= 500:
            seconds = _seconds(reply.retry_after)
            return _PassingError(f"{reason} (Retry-After: {seconds:g} s)" if seconds else reason, seconds)
        return _FinalError(reason)

    def _compare_models(self, asked: str, named: Any) -> None:
        """Warn, once a round, about a reply of another model; a date or an owner may have been added to its name."""
        if not isinstance(named, str) or self._warned or asked.rsplit("/", 1)[-1].lower() in named.lower():
            return
        self._warned = True
        logger.warning("the server names its model %r where %r was asked for", self._endpoint.redacted(named), asked)

    def _late(self) -> str:
        return f"the round took longer than {self._limits.deadline:g} s (deadline)"

    def _stop(self, reason: str, hint: str | None) -> None:
        self.stopped = self.stopped or Stopped(reason, hint)
        self._wake.set()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _seconds(retry_after: str | None) -> float:
    """Seconds of a Retry-After header: a number or a date; 0 if there is none or it is neither."""
    if retry_after is None:
        return 0.0
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0
