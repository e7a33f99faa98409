"""One server that misbehaves in every way at once, and a client that is killed in the middle."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dataflex.errors import RewardError
from helpers.api_judge import KEY, always, backend, by_answer, first, requests
from helpers.http_judge import Call, Reply, completion, judge_server
from helpers.killed_judge import answers

ROOT = Path(__file__).parents[3]
TIMEOUT = 3.0
"""Seconds: more than a busy machine needs to answer."""


def by_answer_text(call: Call) -> str:
    """The number that the answer consists of."""
    found = re.search(r"<answer-\w+>\n(.*)\n</answer-", call.prompt, re.DOTALL)
    assert found
    return found[1]


class Chaos:
    """Mistreats each question up to twice, in ways drawn by seed, and then answers it."""

    WAYS = (
        Reply("slow down", 429, {"Retry-After": "0.05"}),
        Reply("overloaded", 500),
        Reply("bad gateway", 502),
        Reply(completion('{"score": 1.0}'), cut=True),
        Reply(completion('{"score": 1.0}'), delay=TIMEOUT + 0.5),
        Reply(reset=True),
        Reply('{"choices": [{"message": {"content": "{\\"score\\": 1'),
        Reply('{"choices": []}'),
        Reply("<html>proxy</html>"),
        Reply(completion("")),
        Reply(completion('{"score": 11}')),
        Reply(completion('{"score": 1.0}', finish_reason="length")),
    )

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.asked: Counter[str] = Counter()
        self.ways: Counter[int] = Counter()
        self.answered: Counter[str] = Counter()

    def __call__(self, call: Call, number: int) -> Reply:
        answer = by_answer_text(call)
        self.asked[answer] += 1
        if self.asked[answer] <= 2 and self.random.random() < 0.6:
            way = self.random.randrange(len(self.WAYS))
            self.ways[way] += 1
            return self.WAYS[way]
        self.answered[answer] += 1
        return by_answer(call, number)


def test_no_reward_is_wrong_and_no_prompt_lost(tmp_path: Path) -> None:
    chaos, wanted = Chaos(7), answers(120)
    with judge_server(chaos) as server:
        judge = backend(server, cache_path=tmp_path / "replies.sqlite", max_concurrency=6, timeout=TIMEOUT)
        assert judge.score(requests(*wanted)) == [float(answer) for answer in wanted]
        assert len(chaos.ways) == len(Chaos.WAYS)
        stats = judge.stats()
        assert stats["requests"] == len(server.calls)
        assert stats["requests"] == len(wanted) + stats["retries"]
        assert stats["scored"] == len(wanted)
        assert stats["failed"] == 0
        assert server.most_at_once <= 6 + chaos.ways[4]  # the server still sleeps over a request that timed out
        # Billed are the replies that the server finished; each question has exactly one that counted.
        assert all(chaos.answered[answer] == 1 for answer in wanted)
        calls = len(server.calls)
        assert backend(server, cache_path=tmp_path / "replies.sqlite").score(requests(*wanted)) == [
            float(answer) for answer in wanted
        ]
        assert len(server.calls) == calls


def test_a_burst_of_errors_longer_than_the_retries_fails_by_name_and_keeps_the_rest(tmp_path: Path) -> None:
    def script(call: Call, number: int) -> Reply:
        return Reply("down", 500) if by_answer_text(call) == "0.5" else by_answer(call, number)

    with judge_server(script) as server:
        judge = backend(server, cache_path=tmp_path / "replies.sqlite", max_retries=2)
        with pytest.raises(RewardError, match=r"1 of 3 answers: sample '1': HTTP 500"):
            judge.score(requests("0.25", "0.5", "0.75"))
        assert len(server.calls) == 2 + 3
        server.script = by_answer
        again = backend(server, cache_path=tmp_path / "replies.sqlite")
        assert again.score(requests("0.25", "0.5", "0.75")) == [0.25, 0.5, 0.75]
    assert len(server.calls) == 2 + 3 + 1


def test_a_reset_connection_is_retried() -> None:
    with judge_server(first(Reply(reset=True), Reply(reset=True))) as server:
        assert backend(server).score(requests("a")) == [0.5]
    assert len(server.calls) == 3


def test_a_model_that_the_server_does_not_have_stops_at_once() -> None:
    body = json.dumps({"error": {"message": "The model `judge` does not exist", "code": "model_not_found"}})
    with judge_server(always(Reply(body, 404))) as server:
        with pytest.raises(RewardError, match=r"HTTP 404.*does not exist(.|\n)*check api_url .*model_name"):
            backend(server, max_concurrency=1).score(requests("a", "b"))
        assert len(server.calls) == 1


@pytest.mark.parametrize(("model", "warned"), [("judge-2026-01-01", False), ("org/judge", False), ("gpt-tiny", True)])
def test_a_reply_of_another_model_is_said(model: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    with judge_server(always(Reply(completion('{"score": 0.5}', model=model)))) as server:
        assert backend(server).score(requests("a", "b", "c")) == [0.5] * 3
    found = [record.getMessage() for record in caplog.records if "names its model" in record.getMessage()]
    assert found == ([f"the server names its model {model!r} where 'judge' was asked for"] if warned else [])


@pytest.mark.integration
def test_a_killed_run_asks_for_missing_rewards_only(tmp_path: Path) -> None:
    count, cache = 40, tmp_path / "replies.sqlite"
    command = [sys.executable, "-m", "helpers.killed_judge"]
    environment = {**os.environ, "TEST_JUDGE_KEY": KEY, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}

    def slow(call: Call, number: int) -> Reply:
        return Reply(by_answer(call, number).body, delay=0.05)

    with judge_server(slow) as server:
        arguments = [server.url, str(cache), str(count)]
        with subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.PIPE) as run:
            end = time.monotonic() + 120
            while len(server.calls) < count // 2:
                assert time.monotonic() < end
                assert run.poll() is None
                time.sleep(0.005)
            run.kill()
        before = [by_answer_text(call) for call in server.calls]
        time.sleep(0.2)  # replies that were under way go nowhere
        server.calls.clear()
        done = subprocess.run([*command, *arguments], env=environment, stdout=subprocess.PIPE, check=True, timeout=120)
        after = [by_answer_text(call) for call in server.calls]
    assert json.loads(done.stdout) == [float(answer) for answer in answers(count)]
    assert len(before) == len(set(before))
    assert len(after) == len(set(after))
    assert set(before) | set(after) == set(answers(count))
    # Only what was under way when the process died is asked for again.
    assert len(set(before) & set(after)) <= 3
    assert KEY.encode() not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
