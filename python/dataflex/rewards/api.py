"""A judge behind an OpenAI-compatible chat completions API.

Prompts, cache and limits are those of :mod:`dataflex.rewards.chat`. The key comes from the environment variable that
``api_key`` names and is never stored or shown; nothing else of the environment is sent.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

from pydantic import Field, field_validator

from dataflex.errors import RewardError
from dataflex.rewards.chat import ChatConfig, ChatReward
from dataflex.rewards.redaction import key_problems
from dataflex.utils.messages import is_environment_name

if TYPE_CHECKING:
    from dataflex.rewards.wire import Endpoint

logger = logging.getLogger(__name__)

_REACH_SECONDS = 10.0
"""How long a server may take to reply to anything at all."""

_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?\.?", re.IGNORECASE)
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
        _check_host(parts)
        if parts.username or parts.password:
            raise ValueError("a URL must not hold a user name or password; api_key names an environment variable")
        if any(_SECRET_PARAMETER.search(name) for name, _ in parse_qsl(parts.query)):
            raise ValueError("a URL must not hold a key; api_key names an environment variable")
        return url

    @field_validator("extra_body")
    @classmethod
    def _is_body(cls, body: dict[str, Any]) -> dict[str, Any]:
        if owned := sorted({"messages", "stream"} & set(body)):
            raise ValueError(f"{' and '.join(owned)} cannot be set: one message is sent, and its reply is read whole")
        try:
            json.dumps(body, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not JSON: {error}") from None
        return body

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
        """See that the packages and the key are there, and that the server can be reached; nothing is asked.

        Raises:
            RewardError: A package or the key is missing, the key is none, or the server cannot be reached.
        """
        super().check()
        from dataflex.rewards.wire import reach

        endpoint = self.endpoint()
        parts = urlsplit(endpoint.base_url)
        if endpoint.key is not None and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            logger.warning(
                "the key in %s goes to %s without encryption: use https:// if the server has it",
                self.config.api_key,
                parts.hostname,
            )
        reach(endpoint, min(self.config.timeout, _REACH_SECONDS))

    def expect_able(self) -> None:
        """See that the packages and the key are there.

        Raises:
            RewardError: A package or the key is missing, or the key is none.
        """
        super().expect_able()
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
            RewardError: The key is missing or none, or there is none for a server elsewhere.
        """
        from dataflex.rewards.wire import Endpoint

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
        if problems := key_problems(key or ""):
            raise RewardError(
                f"the environment variable {name}, which api_key names, holds {' and '.join(problems)}: that is no key",
                hint=f"export {name}=... with the key alone: printable ASCII without white space, one line of a file",
            )
        return Endpoint(base_url, query, key, trust_env=not is_loopback(host))


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_host(parts: SplitResult) -> None:
    """Raise ValueError unless a server can have this host name and port."""
    host = parts.hostname or ""
    try:
        port = parts.port
    except ValueError:
        raise ValueError("the port is not a number from 1 to 65535") from None
    if port == 0 or parts.netloc.endswith(":"):
        raise ValueError("the port is not a number from 1 to 65535")
    if ":" in host:
        return  # an address in brackets, which urlsplit has checked
    try:
        encoded = host.encode("idna").decode()
    except UnicodeError:
        encoded = ""
    if not _HOST.fullmatch(encoded):
        raise ValueError("no server can have this host name: expected letters, digits and hyphens between dots")


def _split_url(url: str) -> tuple[str, dict[str, str]]:
    """Base URL without ``/chat/completions``, and the query."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), dict(parse_qsl(parts.query))
