"""max_requests is a cap of the run: of all its processes together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dataflex.errors import RewardError
from dataflex.rewards.spending import SPENDING_FILE, Spending
from helpers.api_judge import backend, by_answer, requests
from helpers.http_judge import Call, Reply, judge_server

ANSWERS = [f"0.{digit}" for digit in range(1, 10)]


def test_the_cap_holds_however_often_a_run_is_resumed(tmp_path: Path) -> None:
    def script(call: Call, number: int) -> Reply:
        return Reply("down", 500)

    with judge_server(script) as server:
        for resume in range(4):
            judge = backend(server, max_requests=6, max_retries=1, max_concurrency=1)
            judge.use_folder(tmp_path)
            with pytest.raises(RewardError, match=r"max_requests: all 6 requests are spent") as caught:
                judge.score(requests(*ANSWERS))
            assert caught.value.hint == (
                f"raise max_requests, or score fewer answers; {tmp_path / SPENDING_FILE} counts those of the whole "
                "run, however often it was resumed"
            )
            assert judge.stats()["requests"] == (0 if resume else 6)
        assert len(server.calls) == 6
        judge = backend(server, max_requests=8, max_retries=0, max_concurrency=1, on_error="skip")
        judge.use_folder(tmp_path)
        assert judge.score(requests("0.1", "0.2")) == [None, None]
        assert len(server.calls) == 8


def test_every_request_is_a_line_that_is_written_before_it_is_sent(tmp_path: Path) -> None:
    seen = []

    def script(call: Call, number: int) -> Reply:
        seen.append((tmp_path / "run" / SPENDING_FILE).read_text(encoding="utf-8").splitlines())
        return by_answer(call, number)

    with judge_server(script) as server:
        judge = backend(server, max_concurrency=1)
        judge.use_folder(tmp_path / "run")
        judge.score(requests("0.1", "0.2"))
        judge.use_folder(tmp_path / "run")
        judge.score(requests("0.3"))
    assert [len(lines) for lines in seen] == [1, 2, 3]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line) for line in seen[-1])


def test_another_run_has_its_own_cap(tmp_path: Path) -> None:
    with judge_server(by_answer) as server:
        for name in ("a", "b"):
            judge = backend(server, max_requests=2)
            judge.use_folder(tmp_path / name)
            assert judge.score(requests("0.1", "0.2")) == [0.1, 0.2]
    assert len(server.calls) == 4


def test_nothing_is_asked_that_cannot_be_counted(tmp_path: Path) -> None:
    (tmp_path / SPENDING_FILE).mkdir()
    with pytest.raises(RewardError, match=f"cannot be counted in .*{SPENDING_FILE}: Is a directory"):
        Spending(tmp_path / SPENDING_FILE)
    with judge_server(by_answer) as server:
        judge = backend(server)
        judge.use_folder(tmp_path / "run")
        (tmp_path / "run" / SPENDING_FILE).mkdir(parents=True)
        with pytest.raises(RewardError, match=r"stopped at .*cannot be counted in"):
            judge.score(requests("0.1", "0.2"))
    assert not server.calls
