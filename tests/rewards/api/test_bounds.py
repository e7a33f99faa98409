"""Replies without a bound: neither memory nor time goes into them."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib

import pytest

from dataflex.errors import RewardError
from dataflex.rewards.wire import MAX_REPLY_BYTES
from helpers.api_judge import always, backend, first, requests
from helpers.http_judge import Reply, completion, judge_server

ZIPPED = {"Content-Encoding": "gzip"}
BOMB = gzip.compress(bytes(64 * 2**20))
"""64 MiB in 64 KB."""

TOO_LONG = {
    "plain": Reply(b" " * (MAX_REPLY_BYTES + 1)),
    "gzip": Reply(BOMB, headers=ZIPPED),
    "an error": Reply(BOMB, 500, ZIPPED),
    "endless": Reply(b" " * 65536, endless=0.0),
    "endless members of nothing": Reply(gzip.compress(b"") * 1000, headers=ZIPPED, endless=0.0),
}


@pytest.mark.parametrize("reply", TOO_LONG.values(), ids=TOO_LONG)
def test_a_reply_that_is_too_long_is_not_read(reply: Reply) -> None:
    with judge_server(first(reply)) as server:
        backend(server).score(requests("warm"))
        server.calls.clear()
        tracemalloc.start()
        try:
            assert backend(server).score(requests("a")) == [0.5]
            assert tracemalloc.get_traced_memory()[1] < 8 * MAX_REPLY_BYTES
        finally:
            tracemalloc.stop()
        assert len(server.calls) == 2
    with judge_server(always(reply)) as server, pytest.raises(RewardError, match="the reply is longer than 4 MiB"):
        backend(server, max_retries=0).score(requests("a"))


@pytest.mark.parametrize("encoding", ["gzip, gzip", "br", "zstd", "deflate", "compress", "x" * 1000])
def test_what_was_not_asked_for_is_not_unpacked(encoding: str) -> None:
    reply = Reply(gzip.compress(BOMB), headers={"Content-Encoding": encoding})
    with judge_server(first(reply)) as server:
        assert backend(server).score(requests("a")) == [0.5]
        assert server.calls[0].headers["accept-encoding"] == "identity"
    with judge_server(always(reply)) as server, pytest.raises(RewardError, match=r"encoded as '.*not asked for"):
        backend(server, max_retries=0).score(requests("a"))


def test_a_small_gzip_is_read_though_it_was_not_asked_for() -> None:
    with judge_server(always(Reply(gzip.compress(completion("0.25").encode()), headers=ZIPPED))) as server:
        assert backend(server).score(requests("a")) == [0.25]


@pytest.mark.parametrize("body", [gzip.compress(completion("0.25").encode())[:-9], zlib.compress(b"{}"), b"{}"])
def test_a_broken_gzip_is_a_failed_reply(body: bytes) -> None:
    with judge_server(first(Reply(body, headers=ZIPPED))) as server:
        assert backend(server).score(requests("a")) == [0.5]


def test_a_reply_that_trickles_ends_with_the_timeout() -> None:
    with judge_server(first(Reply(b" ", endless=0.01))) as server:
        assert backend(server, timeout=0.3).score(requests("a")) == [0.5]


@pytest.mark.parametrize("reply", [Reply(b" ", endless=0.01), TOO_LONG["endless"], TOO_LONG["gzip"]])
def test_the_deadline_holds(reply: Reply) -> None:
    start = time.monotonic()
    with judge_server(always(reply)) as server, pytest.raises(RewardError, match="longer than"):
        backend(server, timeout=60, deadline=0.5, max_retries=10**6, max_concurrency=1).score(requests("a", "b"))
    assert time.monotonic() - start < 5
