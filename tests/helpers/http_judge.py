"""A chat completions server on 127.0.0.1 that answers, and misbehaves, by script."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the server does with one request.

    Attributes:
        body: Sent as it is, text as UTF-8; see :func:`completion` for a regular one.
        status: HTTP status.
        headers: Further headers, or others in place of the usual ones.
        delay: Seconds before the reply.
        cut: Announce the whole body, send half of it and hang up.
        reset: Send nothing and reset the connection.
        reason: The status line's text; None: the usual one.
        endless: Send the body again and again, with as many seconds in between, without a length.
    """

    body: str | bytes = "{}"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    cut: bool = False
    reset: bool = False
    reason: str | None = None
    endless: float | None = None


@dataclass
class Call:
    """A request that arrived: when, where, and what it carried."""

    time: float
    path: str
    authorization: str | None
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The text of its only message."""
        (message,) = self.body["messages"]
        return str(message["content"])


class JudgeServer:
    """Calls that arrived, and the script that answers them.

    Attributes:
        script: Function of (call, number of the call from 0) that says what to do.
        calls: Everything that arrived, in order.
        most_at_once: The largest number of requests that were under way together.
        models: Names that GET /v1/models lists.
        knocks: Headers of the HEAD requests that arrived.
    """

    def __init__(self, script: Callable[[Call, int], Reply]) -> None:
        self.script = script
        self.calls: list[Call] = []
        self.most_at_once = 0
        self.models: list[str] = []
        self.knocks: list[dict[str, str]] = []
        self.url = ""
        self._under_way = 0
        self._lock = threading.Lock()

    def answer(self, call: Call) -> Reply:
        """Record a call and wait for its turn in the script."""
        with self._lock:
            number = len(self.calls)
            self.calls.append(call)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
        reply = self.script(call, number)
        time.sleep(reply.delay)
        return reply

    def done(self) -> None:
        """A request is over: called before its last byte is sent."""
        with self._lock:
            self._under_way -= 1


def completion(content: str | None, finish_reason: str | None = "stop", model: str = "judge") -> str:
    """The body of a regular chat completion."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": model, "choices": [choice]})


def score(value: float) -> Reply:
    """A judge that gives this score."""
    return Reply(completion(json.dumps({"score": value})))


@contextmanager
def judge_server(script: Callable[[Call, int], Reply]) -> Iterator[JudgeServer]:
    """Serve ``script`` on a free port of 127.0.0.1 until the block ends; ``url`` ends in /v1."""
    judge = JudgeServer(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = judge.answer(Call(time.monotonic(), self.path, headers.get("authorization"), body, headers))
            sent = reply.body.encode() if isinstance(reply.body, str) else reply.body
            judge.done()
            if reply.reset:
                # No lingering: closing sends RST in place of FIN.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.rfile.close()
                self.wfile.close()
                self.connection.close()
                self.close_connection = True
                return
            self.send(reply, sent)

        def do_GET(self) -> None:
            data = [{"id": name, "object": "model", "created": 0, "owned_by": "x"} for name in judge.models]
            self.send(Reply(), json.dumps({"object": "list", "data": data}).encode())

        def send(self, reply: Reply, sent: bytes) -> None:
            with suppress(OSError):  # the client may have gone
                self.send_response(reply.status, reply.reason)
                length = {"content-length": str(len(sent))} if reply.endless is None else {}
                for name, value in {"content-type": "application/json", **length, **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent[: len(sent) // 2] if reply.cut else sent)
                while reply.endless is not None:
                    time.sleep(reply.endless)
                    self.wfile.write(sent)

        def do_HEAD(self) -> None:
            judge.knocks.append({name.lower(): value for name, value in self.headers.items()})
            self.send(Reply(headers={"content-length": "0"}), b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 64  # bursts are not refused
        block_on_close = False  # a script that sleeps does not hold up the test

    server = Server(("127.0.0.1", 0), Handler)
    judge.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
