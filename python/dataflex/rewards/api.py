"""A judge behind an OpenAI-compatible chat completions API.

Every answer is shown to the judge with a prompt of :mod:`dataflex.rewards.judge`; equal prompts are asked once. A
reply that is a score goes into the cache at once, so that a resumed run, or a run that stopped at an error, pays for
no answer twice. The key comes from the environment variable that ``api_key`` names and is never stored or shown.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import Field, field_validator

from dataflex.config.messages import is_environment_name
from dataflex.errors import RewardError
from dataflex.progress import progress_bar
from dataflex.rewards.base import Failure, RewardBackend, settle
from dataflex.rewards.cache import ReplyCache, cache_key
from dataflex.rewards.judge import REMINDER, JudgeConfig, JudgePrompt, parse_score
from dataflex.types import RewardRequest

if TYPE_CHECKING:
    from dataflex.rewards.chat_client import Endpoint, Question

CACHE_FORMAT = 1
"""Part of every cache key; grows when equal questions may get other replies than before."""

_SECRET_PARAMETER = re.compile(r"key|token|secret|signature", re.IGNORECASE)


def default_cache_path() -> Path:
    """``dataflex/judge-replies.sqlite`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    folder = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(folder).expanduser() / "dataflex" / "judge-replies.sqlite"


class ApiConfig(JudgeConfig):
    """Parameters of a judge behind an API."""

    api_url: str = Field(description="URL of the API: .../v1, or in full .../v1/chat/completions")
    model_name: str = Field(min_length=1, description="the judge's name at that API")
    api_key: str | None = Field(
        "DF_API_KEY",
        description="NAME of the environment variable that holds the key; null: no key (servers on this machine only)",
    )
    temperature: float | None = Field(0.0, ge=0, le=2, description="sampling temperature; null: the server's default")
    max_tokens: int | None = Field(512, ge=1, description="longest reply in tokens; null: the server's default")
    extra_body: dict[str, Any] = Field(default_factory=dict, description="further fields of the request")
    max_concurrency: int = Field(8, ge=1, description="requests under way at once")
    timeout: float = Field(60.0, gt=0, description="seconds for one request")
    deadline: float | None = Field(None, gt=0, description="seconds for one round of answers; null: no bound")
    max_retries: int = Field(6, ge=0, description="repetitions of a request that failed in passing")
    backoff: float = Field(1.0, gt=0, description="seconds before the first repetition; doubles each time, up to 60")
    max_requests: int | None = Field(None, ge=1, description="spend cap: requests of this run; null: no cap")
    cache_path: Path | None = Field(
        default_factory=default_cache_path, description="SQLite file of the judge's replies; null: no cache"
    )

    @field_validator("api_url")
    @classmethod
    def _is_http_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected a URL that starts with http:// or https://")
        if parts.username or parts.password:
            raise ValueError("a URL must not hold a user name or password; api_key names an environment variable")
        if any(_SECRET_PARAMETER.search(name) for name, _ in parse_qsl(parts.query)):
            raise ValueError("a URL must not hold a key; api_key names an environment variable")
        return url

    @field_validator("api_key")
    @classmethod
    def _is_name(cls, name: str | None) -> str | None:
        if name is not None and not is_environment_name(name):
            raise ValueError(
                "expected the name of an environment variable (capitals, digits, underscores), not a key; put the key "
                "in the environment (export DF_API_KEY=...), write api_key: DF_API_KEY, and take the key out of here"
            )
        return name


class ApiReward(RewardBackend[ApiConfig]):
    """Scores answers in [0, 1] with a judge behind an OpenAI-compatible API.

    Example:
        >>> judge = ApiReward(api_url="https://api.openai.com/v1", model_name="gpt-4o", api_key="DF_API_KEY")
    """

    name: ClassVar[str] = "api"
    Config = ApiConfig

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._prompt = JudgePrompt(self.config)

    def check(self) -> None:
        """See that the packages and the key are there; no request is sent.

        Raises:
            RewardError: A package or the key is missing.
        """
        try:
            import openai  # noqa: F401
            import tenacity  # noqa: F401
        except ImportError as error:
            raise RewardError(
                f"reward backend 'api' needs a package that is not installed: {error.name}",
                hint='pip install "dataflex-sdk[api]"',
            ) from error
        self._endpoint()

    def score(self, requests: Sequence[RewardRequest]) -> list[float | None]:
        """Score answers; see :meth:`RewardBackend.score`.

        Raises:
            RewardError: An answer could not be scored and ``on_error`` is ``raise``; or, whatever ``on_error`` is, the
                server refused the key or model or the spend cap is reached. Scores that arrived are cached before.
        """
        self.check()
        with self._stats.timed(), ReplyCache(self.config.cache_path) as cache:
            outcomes = self._outcomes(requests, cache)
        return settle(outcomes, requests, backend=self.name, on_error=self.config.on_error, stats=self._stats)

    def _outcomes(self, requests: Sequence[RewardRequest], cache: ReplyCache) -> list[float | Failure]:
        prompts = [self._rendered(request) for request in requests]
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
        config, endpoint = self.config, self._endpoint()
        limits = Limits(
            max_concurrency=config.max_concurrency,
            timeout=config.timeout,
            deadline=config.deadline,
            max_retries=config.max_retries,
            backoff=config.backoff,
            max_requests=config.max_requests,
        )
        with progress_bar(len(questions), "asking the judge", unit="answer") as progress:
            asking = Round(endpoint, limits, self._stats, progress.update)
            outcomes = asking.ask(questions)
        if asking.stopped is not None:
            scored = sum(not isinstance(outcome, Failure) for outcome in outcomes.values())
            kept = " and are cached" if config.cache_path else ""
            raise RewardError(
                f"reward backend 'api' stopped at {endpoint.base_url}: {asking.stopped.reason} "
                f"({scored} of {len(questions)} questions were answered{kept})",
                hint=asking.stopped.hint,
            )
        return outcomes

    def _rendered(self, request: RewardRequest) -> str | Failure:
        try:
            return self._prompt.render(request)
        except RewardError as error:
            return Failure(error.message, error)

    def _question(self, key: str, prompt: str, cache: ReplyCache) -> Question:
        from dataflex.rewards.chat_client import Question

        prompts = (prompt, *[prompt + REMINDER * attempt for attempt in range(1, self.config.parse_retries + 1)])
        return Question(self._body(), prompts, partial(_keep_score, cache, key))

    def _body(self) -> dict[str, Any]:
        config = self.config
        body = {"model": config.model_name, "temperature": config.temperature, "max_tokens": config.max_tokens}
        sent = {name: value for name, value in body.items() if value is not None}
        return {**sent, "extra_body": config.extra_body} if config.extra_body else sent

    def _key(self, prompt: str) -> str:
        return cache_key(
            {"format": CACHE_FORMAT, "url": _split_url(self.config.api_url), "prompt": prompt, "body": self._body()}
        )

    def _endpoint(self) -> Endpoint:
        from dataflex.rewards.chat_client import Endpoint

        base_url, query = _split_url(self.config.api_url)
        host = urlsplit(base_url).hostname or ""
        name = self.config.api_key
        if name is None and not _is_loopback(host):
            raise RewardError(
                f"api_key: null is for servers on this machine, and api_url names {host!r}",
                hint="api_key: the name of an environment variable that holds the key (any text if none is needed)",
            )
        key = os.environ.get(name, "").strip() if name else None
        if key == "":
            raise RewardError(
                f"the environment variable {name}, which api_key names, is not set",
                hint=f"export {name}=... before the run; api_key: null for a server on this machine without a key",
            )
        return Endpoint(base_url, query, key, trust_env=not _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split_url(url: str) -> tuple[str, dict[str, str]]:
    """Base URL without ``/chat/completions``, and the query."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), dict(parse_qsl(parts.query))


def _keep_score(cache: ReplyCache, key: str, reply: str) -> float | None:
    """The reply's score; the first reply that is one is the answer to the question from then on."""
    return None if parse_score(reply) is None else parse_score(cache.put(key, reply))
