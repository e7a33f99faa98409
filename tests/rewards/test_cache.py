from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataflex.errors import RewardError
from dataflex.rewards.cache import ReplyCache, cache_key

WRITER = """
import asyncio, sys
from pathlib import Path
from dataflex.rewards.cache import ReplyCache
with ReplyCache(Path(sys.argv[1])) as cache:
    print([asyncio.run(cache.put(str(number), sys.argv[2])) for number in range(50)])
"""


def put(cache: ReplyCache, key: str, reply: str) -> str:
    return asyncio.run(cache.put(key, reply))


@contextmanager
def locked(path: Path, seconds: float) -> Iterator[None]:
    """Another connection holds the file so that nobody may read or write it."""
    held = threading.Event()

    def hold() -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        held.set()
        time.sleep(seconds)
        other.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    yield
    thread.join()


def test_replies_outlive_the_cache_object_and_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "replies.sqlite"
    with ReplyCache(path) as cache:
        assert cache.get("a") is None
        assert put(cache, "a", "first") == "first"
        assert put(cache, "a", "second") == "first"
    with ReplyCache(path) as cache:
        assert cache.get("a") == "first"


def test_without_a_path_nothing_is_kept() -> None:
    with ReplyCache(None) as cache:
        assert put(cache, "a", "first") == "first"
    with ReplyCache(None) as cache:
        assert cache.get("a") is None


def test_processes_that_write_at_once_agree(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("x", "y")]
    printed = {writer.communicate(timeout=60)[0] for writer in writers}
    assert [writer.returncode for writer in writers] == [0, 0]
    (agreed,) = printed
    with ReplyCache(path) as cache:
        assert agreed.strip() == str([cache.get(str(number)) for number in range(50)])


def test_keys_depend_on_every_value_and_not_on_order() -> None:
    assert cache_key({"a": 1, "b": {"c": 2}}) == cache_key({"b": {"c": 2}, "a": 1})
    assert cache_key({"a": 1}) != cache_key({"a": 1.5})


def test_a_file_that_is_no_cache_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    path.write_bytes(b"something else entirely" * 100)
    with pytest.raises(RewardError, match=r"replies.sqlite cannot be used.*\n.*may be deleted"):
        ReplyCache(path)


def test_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"
    with ReplyCache(path) as cache:
        assert put(cache, "a", "first") == "first"
    with locked(path, 0.3), ReplyCache(path) as cache:
        assert cache.get("a") == "first"


def test_waiting_for_a_locked_file_holds_up_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "replies.sqlite"

    async def race() -> list[str]:
        order: list[str] = []

        async def store() -> None:
            await cache.put("a", "first")
            order.append("stored")

        async def other() -> None:
            await asyncio.sleep(0.05)
            order.append("other")

        await asyncio.gather(store(), other())
        return order

    with ReplyCache(path) as cache:
        writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        writer.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.4, writer.close)
        timer.start()
        assert asyncio.run(race()) == ["other", "stored"]
        timer.join()
        assert cache.get("a") == "first"


def test_a_file_that_stays_locked_is_said_and_then_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dataflex.rewards.cache.LOCK_TIMEOUT_SECONDS", 0.1)
    monkeypatch.setattr("dataflex.rewards.cache._SAID_AFTER_SECONDS", 0.0)
    path = tmp_path / "replies.sqlite"
    with ReplyCache(path):
        pass
    with locked(path, 0.5), pytest.raises(RewardError, match=r"replies.sqlite cannot be used: database is locked"):
        ReplyCache(path)
    assert [record.getMessage() for record in caplog.records] == [
        f"the reply cache {path} is locked by another process; waiting up to 0.1 s for it"
    ]
