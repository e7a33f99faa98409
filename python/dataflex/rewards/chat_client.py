"""Asking an OpenAI-compatible server many questions at once, within limits.

A fixed number of workers takes questions one by one. A request that fails in passing (408, 409, 429, 5xx, connection
errors, time-outs, replies that are not a chat completion) is repeated with exponential backoff and jitter, never
sooner than the server's Retry-After. Where going on is pointless (401, 402, 403, 404, a redirect, no quota left, the
request cap) no further request is sent, those under way are finished and kept, and the round reports why it stopped.

Messages of the server are shown without the API key, and its exceptions are not chained: they could hold the key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from dataflex.rewards.base import Failure, RewardStats

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
_SHOWN_CHARACTERS = 300

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where questions go. The key is in no representation of this object.

    Attributes:
        base_url: URL without ``/chat/completions``.
        query: Parameters of the URL's query.
        key: The API key; None sends no key.
        trust_env: Whether proxies of the environment apply.
    """

    base_url: str
    query: Mapping[str, str]
    key: str | None = field(repr=False)
    trust_env: bool = True

    def redacted(self, text: str) -> str:
        """``text`` without the key, shortened, on one line."""
        text = " ".join((text.replace(self.key, "(redacted)") if self.key else text).split())
        return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."


@dataclass(frozen=True, slots=True)
class Limits:
    """What a round may take.

    Attributes:
        max_concurrency: Requests under way at once.
        timeout: Seconds for one request.
        deadline: Seconds for the whole round, or None.
        max_retries: Repetitions of a request that failed in passing.
        backoff: Seconds before the first repetition; doubles each time.
        max_requests: Requests since the backend was built, or None.
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
        accept: Turns a reply into a number, or None if the reply is to be asked for again.
    """

    body: Mapping[str, Any]
    prompts: tuple[str, ...]
    accept: Callable[[str], float | None]


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
        on_done: Called after every question that is done.
    """

    def __init__(
        self, endpoint: Endpoint, limits: Limits, stats: RewardStats, on_done: Callable[[], object] = lambda: None
    ) -> None:
        self.stopped: Stopped | None = None
        self._endpoint = endpoint
        self._limits = limits
        self._stats = stats
        self._on_done = on_done
        self._end: float | None = None
        self._warned = False
        self._jitter = random.Random()  # its own: the global generator belongs to the training run

    def ask(self, questions: Mapping[str, Question]) -> dict[str, float | Failure]:
        """Ask all questions; one number or failure each."""
        return _run(self._ask_all(questions))

    async def _ask_all(self, questions: Mapping[str, Question]) -> dict[str, float | Failure]:
        self._wake = asyncio.Event()
        if self._limits.deadline is not None:
            self._end = _now() + self._limits.deadline
        outcomes: dict[str, float | Failure] = {}
        waiting = iter(questions.items())
        # No redirects: the key goes to the host that the configuration names.
        http = openai.DefaultAsyncHttpxClient(trust_env=self._endpoint.trust_env, follow_redirects=False)
        client = openai.AsyncOpenAI(
            api_key=self._endpoint.key or "none",
            base_url=self._endpoint.base_url,
            default_query=dict(self._endpoint.query),
            timeout=self._limits.timeout,
            max_retries=0,
            http_client=http,
        )
        async with client:
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
        client: openai.AsyncOpenAI,
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
            self._on_done()

    async def _answer(self, client: openai.AsyncOpenAI, question: Question) -> float | Failure:
        shown = ""
        for attempt, prompt in enumerate(question.prompts):
            self._stats.retries += attempt > 0
            reply = await self._persistently(client, question.body, prompt)
            number = None if reply is None else question.accept(reply)
            if number is not None:
                return number
            self._stats.unparsable += 1
            shown = "cut off or empty" if reply is None else repr(self._endpoint.redacted(reply))
        return Failure(f"the judge's reply is not a score, asked {len(question.prompts)} times: {shown}")

    async def _persistently(self, client: openai.AsyncOpenAI, body: Mapping[str, Any], prompt: str) -> str | None:
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_PassingError),
            wait=self._wait,
            stop=self._gives_up,
            sleep=self._sleep,
            before_sleep=self._count_retry,
            reraise=True,
        )
        reply: str | None = await retrying(self._send, client, body, prompt)
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

    async def _send(self, client: openai.AsyncOpenAI, body: Mapping[str, Any], prompt: str) -> str | None:
        """One request: the reply's text, or None if it was cut off or empty."""
        cap = self._limits.max_requests
        if cap is not None and self._stats.requests >= cap:
            self._stop(f"max_requests: all {cap} requests are spent", "raise max_requests, or score fewer answers")
        if self.stopped is not None:
            raise _FinalError(f"not asked: {self.stopped.reason}")
        if self._end is not None and _now() >= self._end:
            raise _FinalError(self._late())
        self._stats.requests += 1
        try:
            async with asyncio.timeout(self._limits.timeout):
                raw = await client.chat.completions.with_raw_response.create(
                    messages=[{"role": "user", "content": prompt}], **body
                )
        except (TimeoutError, openai.APITimeoutError):
            problem: Exception = _PassingError(f"no reply within {self._limits.timeout:g} s (timeout)")
        except openai.APIStatusError as error:
            problem = self._explained(error)
        except openai.APIConnectionError as error:
            problem = _PassingError(self._endpoint.redacted(f"no connection: {error.__cause__ or error}"))
        else:
            return self._reply_text(raw.http_response.text, str(body["model"]))
        raise problem  # outside of the handler: the SDK's exception is not chained

    def _explained(self, error: openai.APIStatusError) -> Exception:
        reason = self._endpoint.redacted(f"HTTP {error.status_code}: {error.message}")
        if error.status_code in _POINTLESS or error.code == "insufficient_quota":
            self._stop(reason, _HINTS.get(error.status_code))
        elif error.status_code in _PASSING or error.status_code >= 500:
            seconds = _seconds(error.response.headers.get("retry-after"))
            return _PassingError(f"{reason} (Retry-After: {seconds:g} s)" if seconds else reason, seconds)
        return _FinalError(reason)

    def _reply_text(self, body: str, model: str) -> str | None:
        try:
            reply = json.loads(body)
            choice = reply["choices"][0]
            content, finished = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise _PassingError(f"not a chat completion: {self._endpoint.redacted(body)!r}") from None
        self._compare_models(model, reply.get("model"))
        # A cut number is another number: "0.9" may have been "0.95".
        return content if isinstance(content, str) and finished != "length" else None

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


def model_names(endpoint: Endpoint, timeout: float) -> list[str]:
    """Names of the models that a server offers; none if it does not answer, or not as such a server does."""
    client = openai.OpenAI(
        api_key=endpoint.key or "none",
        base_url=endpoint.base_url,
        timeout=timeout,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=endpoint.trust_env, follow_redirects=False),
    )
    with client, suppress(openai.OpenAIError, ValueError, AttributeError, TypeError):
        return [str(model.id) for model in client.models.list()]
    return []


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


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end, also where a loop is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
