"""HTTP as judges are asked over it: nothing is sent but what the configuration names, and little is read.

The client of an API's vendor would add an organisation, a project, further headers, even another key, from environment
variables of its own; and it reads replies whole, whatever their size, and decodes them as they ask for. Here a request
is its JSON and one key, and a reply is at most :data:`MAX_REPLY_BYTES` long, as it arrives and when it is unpacked.

Messages are shown without the key, and exceptions of the HTTP library are not chained: they could hold it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import zlib
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2

from dataflex.errors import RewardError
from dataflex.rewards.redaction import redacted
from dataflex.version import __version__

MAX_REPLY_BYTES = 4 * 2**20
"""A judgement has a hundred bytes; with the longest reasoning around it a few hundred thousand."""

_COMPLETIONS = "chat/completions"
_LIBRARY_LOGGERS = ("httpx2", *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")))
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
_USER_INFO = re.compile(r"//[^/@\s]*@")

_is_asking: ContextVar[bool] = ContextVar("whether a judge is being asked", default=False)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where questions go. The key is in no representation of this object.

    Attributes:
        base_url: URL without ``/chat/completions``.
        query: Parameters of the URL's query.
        key: The API key; None sends no key.
        trust_env: Whether proxies and certificates of the environment apply.
    """

    base_url: str
    query: Mapping[str, str]
    key: str | None = field(repr=False)
    trust_env: bool = True

    def redacted(self, text: str) -> str:
        """``text`` without the key and a proxy's password, shortened, on one line."""
        return redacted(_USER_INFO.sub("//(redacted)@", text), self.key)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What a server replied.

    Attributes:
        status: HTTP status.
        body: Unpacked.
        retry_after: The header Retry-After, if there is one.
    """

    status: int
    body: bytes
    retry_after: str | None = None

    @property
    def json(self) -> Any:
        """The body as JSON, in UTF-8, 16 or 32, whatever the header says.

        Raises:
            ValueError: It is not JSON.
        """
        try:
            return json.loads(self.body)
        except RecursionError:
            raise ValueError("nested too deeply") from None

    @property
    def text(self) -> str:
        """The body for people."""
        return self.body.decode("utf-8", "replace")


class WireError(Exception):
    """There is no reply, or none that can be read. The text is without the key."""


class Client:
    """Asks one endpoint; use it as an asynchronous context manager.

    Args:
        endpoint: The server.
        with_key: Whether the key is sent.

    Raises:
        RewardError: The environment's proxies or certificates cannot be used.
    """

    def __init__(self, endpoint: Endpoint, *, with_key: bool = True) -> None:
        self._endpoint = endpoint
        headers = {"accept": "application/json", "accept-encoding": "identity", "user-agent": f"dataflex/{__version__}"}
        if with_key and endpoint.key is not None:
            headers["authorization"] = f"Bearer {endpoint.key}"
        try:
            self._http = httpx2.AsyncClient(
                base_url=endpoint.base_url,
                params=dict(endpoint.query),
                headers=headers,
                timeout=None,  # whoever asks sets one for the whole request
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
                follow_redirects=False,  # the key goes to the host that the configuration names
                trust_env=endpoint.trust_env,
            )
            return
        except (OSError, ValueError, ImportError, httpx2.InvalidURL) as error:
            reason = endpoint.redacted(f"{type(error).__name__}: {error}")
        raise RewardError(f"no request can be sent to {endpoint.base_url}: {reason}", hint=_environment())

    async def __aenter__(self) -> Client:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._http.__aexit__(*exception)

    async def ask(self, body: Mapping[str, Any], timeout: float) -> HttpReply:
        """Ask for a chat completion.

        Raises:
            WireError: There is no reply that can be read, or not within ``timeout`` seconds.
        """
        sent = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")  # lone surrogates become question marks
        return await self._send(
            "POST", _COMPLETIONS, timeout, content=sent, headers={"content-type": "application/json"}
        )

    async def request(self, method: str, path: str, timeout: float) -> HttpReply:
        """Send a request without a body; see :meth:`ask`."""
        return await self._send(method, path, timeout)

    async def _send(self, method: str, path: str, timeout: float, **content: Any) -> HttpReply:
        reason = f"no reply within {timeout:g} s (timeout)"
        try:
            async with asyncio.timeout(timeout):
                with _asking():
                    async with self._http.stream(method, path, **content) as response:
                        body = await _read(response)
                        return HttpReply(response.status_code, body, response.headers.get("retry-after"))
        except TimeoutError:
            pass
        except WireError as error:
            reason = self._endpoint.redacted(str(error))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, zlib.error) as error:
            reason = self._endpoint.redacted(f"no connection: {str(error) or type(error).__name__}")
        raise WireError(reason)  # outside of the handlers: the library's exception is not chained


def reach(endpoint: Endpoint, timeout: float) -> None:
    """See that the server can be reached: its name, port and certificate, and the proxy on the way.

    One HEAD request is sent, without the key; whatever the server replies to it will do.

    Raises:
        RewardError: It cannot.
    """

    async def knock() -> str | None:
        async with Client(endpoint, with_key=False) as client:
            try:
                reply = await client.request("HEAD", "", timeout)
            except WireError as error:
                return str(error)
        return "the proxy asks for a user name and password (HTTP 407)" if reply.status == 407 else None

    problem = run(knock())
    if problem is not None:
        raise RewardError(f"the judge at {endpoint.base_url} cannot be reached: {problem}", hint=_environment())


def model_names(endpoint: Endpoint, timeout: float) -> list[str]:
    """Names of the models that a server offers; none if it does not answer, or not as such a server does."""

    async def listed() -> list[str]:
        async with Client(endpoint) as client:
            reply = await client.request("GET", "models", timeout)
        return [str(model["id"]) for model in reply.json["data"]] if reply.status == 200 else []

    try:
        return run(listed())
    except (WireError, ValueError, LookupError, TypeError):
        return []


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end, also where a loop is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def _read(response: httpx2.Response) -> bytes:
    """The body, unpacked.

    Raises:
        WireError: It is too long, or packed in a way that was not asked for.
    """
    packed = response.headers.get("content-encoding", "").strip().lower()
    if packed not in ("", "identity", "gzip"):
        raise WireError(f"the reply is encoded as {packed[:40]!r}, which was not asked for")
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS) if packed == "gzip" else None
    body, arrived = bytearray(), 0
    async for piece in response.aiter_raw():
        arrived += len(piece)
        body += unpacker.decompress(piece, MAX_REPLY_BYTES + 1 - len(body)) if unpacker else piece
        if max(arrived, len(body)) > MAX_REPLY_BYTES:
            raise WireError(f"the reply is longer than {MAX_REPLY_BYTES // 2**20} MiB")
    if unpacker and arrived and not unpacker.eof:
        raise WireError("the reply ends before its gzip does")
    return bytes(body)


@contextmanager
def _asking() -> Iterator[None]:
    """Keep the HTTP library's log records out: they repeat headers as the server sent them."""
    token = _is_asking.set(True)
    try:
        yield
    finally:
        _is_asking.reset(token)


def _is_told(record: logging.LogRecord) -> bool:
    return not _is_asking.get()


for _name in _LIBRARY_LOGGERS:
    logging.getLogger(_name).addFilter(_is_told)


def _environment() -> str:
    """Which variables of the environment play a part in a connection; their values may be secret."""
    known = (*_PROXIES, *(name.lower() for name in _PROXIES), *_CERTIFICATES)
    names = ", ".join(name for name in known if name in os.environ)
    given = f"; the environment sets {names}" if names else ""
    return f"check scheme, host name and port of api_url, proxies (HTTPS_PROXY) and certificates (SSL_CERT_FILE){given}"
