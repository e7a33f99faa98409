"""A judge behind an OpenAI-compatible chat completions API.

Prompts, cache and limits are those of :mod:`dataflex.rewards.chat`. The key comes from the environment variable that
``api_key`` names and is never stored or shown.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import Field, field_validator

from dataflex.errors import RewardError
from dataflex.rewards.chat import ChatConfig, ChatReward
from dataflex.utils.messages import is_environment_name

if TYPE_CHECKING:
    from dataflex.rewards.chat_client import Endpoint

_SECRET_PARAMETER = re.compile(r"key|token|secret|signature", re.IGNORECASE)


class ApiConfig(ChatConfig):
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


class ApiReward(ChatReward[ApiConfig]):
    """Scores answers in [0, 1] with a judge behind an OpenAI-compatible API.

    Example:
        >>> judge = ApiReward(api_url="https://api.openai.com/v1", model_name="gpt-4o", api_key="DF_API_KEY")
    """

    name: ClassVar[str] = "api"
    Config = ApiConfig

    def check(self) -> None:
        """See that the packages and the key are there; no request is sent.

        Raises:
            RewardError: A package or the key is missing.
        """
        super().check()
        self.endpoint()

    def identity(self) -> Any:
        """The URL."""
        return _split_url(self.config.api_url)

    def body(self) -> dict[str, Any]:
        """Model, sampling parameters and ``extra_body``."""
        config = self.config
        body = {"model": config.model_name, "temperature": config.temperature, "max_tokens": config.max_tokens}
        sent = {name: value for name, value in body.items() if value is not None}
        return {**sent, "extra_body": config.extra_body} if config.extra_body else sent

    def endpoint(self) -> Endpoint:
        """The server and the key.

        Raises:
            RewardError: The key is missing, or there is none for a server elsewhere.
        """
        from dataflex.rewards.chat_client import Endpoint

        base_url, query = _split_url(self.config.api_url)
        host = urlsplit(base_url).hostname or ""
        name = self.config.api_key
        if name is None and not is_loopback(host):
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
        return Endpoint(base_url, query, key, trust_env=not is_loopback(host))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _split_url(url: str) -> tuple[str, dict[str, str]]:
    """Base URL without ``/chat/completions``, and the query."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), dict(parse_qsl(parts.query))
