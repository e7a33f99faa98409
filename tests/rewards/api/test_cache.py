from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dataflex.errors import RewardError
from dataflex.rewards.api import ApiReward
from dataflex.rewards.chat import default_cache_path
from helpers.api_judge import KEY, always, backend, by_answer, requests
from helpers.http_judge import Call, Reply, completion, judge_server


def test_the_second_round_comes_from_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "replies.sqlite"
    with judge_server(by_answer) as server:
        assert backend(server, cache_path=cache).score(requests("0.1", "0.2")) == [0.1, 0.2]
        again = backend(server, cache_path=cache)
        assert again.score(requests("0.2", "0.1", "0.3")) == [0.2, 0.1, 0.3]
        assert len(server.calls) == 3
    assert again.stats()["cache_hits"] == 2
    assert again.stats()["requests"] == 1
    assert KEY.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"model_name": "other"}, {"temperature": 1.0}, {"extra_body": {"seed": 1}}])
def test_another_question_is_no_cache_hit(tmp_path: Path, change: dict[str, Any]) -> None:
    cache = tmp_path / "replies.sqlite"
    with judge_server(by_answer) as server:
        backend(server, cache_path=cache).score(requests("0.1"))
        backend(server, cache_path=cache, **change).score(requests("0.1"))
        assert len(server.calls) == 2
        backend(server, cache_path=cache, max_retries=1, timeout=3, max_concurrency=2).score(requests("0.1"))
        assert len(server.calls) == 2


def test_scores_are_cached_before_an_error_is_raised(tmp_path: Path) -> None:
    cache = tmp_path / "replies.sqlite"

    def script(call: Call, number: int) -> Reply:
        return Reply("", 400) if "odd" in call.prompt else by_answer(call, number)

    with judge_server(script) as server:
        with pytest.raises(RewardError, match="sample '0'"):
            backend(server, cache_path=cache).score(requests("odd", "0.1", "0.2"))
        server.calls.clear()
        assert backend(server, cache_path=cache, on_error="skip").score(requests("odd", "0.1", "0.2")) == [
            None,
            0.1,
            0.2,
        ]
        assert len(server.calls) == 1


def test_an_unparsable_reply_is_never_cached(tmp_path: Path) -> None:
    cache = tmp_path / "replies.sqlite"
    with judge_server(always(Reply(completion("nice")))) as server, pytest.raises(RewardError):
        backend(server, cache_path=cache).score(requests("0.1"))
    with judge_server(by_answer) as server:
        assert backend(server, cache_path=cache).score(requests("0.1")) == [0.1]


def test_the_request_cap_stops_and_keeps_what_was_paid_for(tmp_path: Path) -> None:
    answers = [f"0.{digit}" for digit in range(1, 10)]
    with judge_server(by_answer) as server:
        judge = backend(server, cache_path=tmp_path / "replies.sqlite", max_requests=4, on_error="zero")
        with pytest.raises(RewardError, match=r"all 4 requests are spent \(4 of 9 .* are cached\)"):
            judge.score(requests(*answers))
        assert len(server.calls) == judge.stats()["requests"] == 4
        judge = backend(server, cache_path=tmp_path / "replies.sqlite", max_requests=5)
        assert judge.score(requests(*answers)) == [float(answer) for answer in answers]
    assert len(server.calls) == 9


def test_the_default_cache_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_path() == tmp_path / "dataflex" / "judge-replies.sqlite"
    assert ApiReward(api_url="https://example.org/v1", model_name="judge").config.cache_path == default_cache_path()


def test_two_backends_share_a_cache_and_a_server_at_once(tmp_path: Path) -> None:
    answers = [f"0.{number:02d}" for number in range(20)]
    with judge_server(by_answer) as server, ThreadPoolExecutor(2) as pool:
        judges = [backend(server, cache_path=tmp_path / "replies.sqlite") for _ in range(2)]
        found = list(pool.map(lambda judge: judge.score(requests(*answers)), judges))
    assert found == [[float(answer) for answer in answers]] * 2


def test_a_cache_that_is_locked_for_a_while_costs_no_request(tmp_path: Path) -> None:
    path, answers = tmp_path / "replies.sqlite", [f"0.{number:02d}" for number in range(20)]
    lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def script(call: Call, number: int) -> Reply:
        if number == 2:
            lock.execute("BEGIN IMMEDIATE")
            threading.Timer(0.6, lock.close).start()
        return by_answer(call, number)

    with judge_server(script) as server:
        # The time of a request goes on while the file is locked: none that is under way may be lost to it.
        judge = backend(server, cache_path=path, timeout=0.3, deadline=0.5, max_concurrency=2, on_error="skip")
        first = judge.score(requests(*answers))
        again = backend(server, cache_path=path, max_concurrency=2)
        assert again.score(requests(*answers)) == [float(answer) for answer in answers]
    assert len(server.calls) == len(answers)
    assert again.stats()["cache_hits"] == sum(score is not None for score in first) >= 3


def test_a_cache_that_stays_locked_stops_the_spending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflex.rewards.cache.LOCK_TIMEOUT_SECONDS", 0.1)
    path, answers = tmp_path / "replies.sqlite", [f"0.{number:02d}" for number in range(20)]
    lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def script(call: Call, number: int) -> Reply:
        if number == 4:
            lock.execute("BEGIN IMMEDIATE")
        return by_answer(call, number)

    with judge_server(script) as server:
        judge = backend(server, cache_path=path, max_concurrency=2)
        with pytest.raises(RewardError, match=r"stopped at .*: the reply cache .* cannot be used: database is locked"):
            judge.score(requests(*answers))
        lock.close()
        assert len(server.calls) <= 7
