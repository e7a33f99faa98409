from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dataflex.errors import RewardError
from dataflex.rewards.cache import ReplyCache, cache_key

WRITER = """
import sys
from pathlib import Path
from dataflex.rewards.cache import ReplyCache
with ReplyCache(Path(sys.argv[1])) as cache:
    print([cache.put(str(number), sys.argv[2]) for number in range(50)])
"""


def test_replies_outlive_the_cache_object_and_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "replies.sqlite"
    with ReplyCache(path) as cache:
        assert cache.get("a") is None
        assert cache.put("a", "first") == "first"
        assert cache.put("a", "second") == "first"
    with ReplyCache(path) as cache:
        assert cache.get("a") == "first"


def test_without_a_path_nothing_is_kept() -> None:
    with ReplyCache(None) as cache:
        assert cache.put("a", "first") == "first"
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
