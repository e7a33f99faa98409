from __future__ import annotations

import json
import logging
import socket
import time
import traceback
from email.utils import formatdate
from typing import Any

import pytest

from dataflex.errors import RewardError
from helpers.api_judge import KEY, always, backend, by_answer, first, requests
from helpers.http_judge import Call, Reply, completion, judge_server, score


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_passing_failures_are_retried(status: int) -> None:
    with judge_server(first(Reply("busy", status), Reply("busy", status))) as server:
        judge = backend(server)
        assert judge.score(requests("a")) == [0.5]
    assert len(server.calls) == judge.stats()["requests"] == 3
    assert judge.stats()["retries"] == 2


@pytest.mark.parametrize(
    "retry_after", [pytest.param("0.3", id="seconds"), pytest.param(lambda: formatdate(time.time() + 2), id="date")]
)
def test_retry_after_is_honoured(retry_after: Any) -> None:
    value = retry_after if isinstance(retry_after, str) else retry_after()
    with judge_server(first(Reply("slow down", 429, {"Retry-After": value}))) as server:
        assert backend(server).score(requests("a")) == [0.5]
    before, after = (call.time for call in server.calls)
    assert after - before >= 0.3  # a date has whole seconds: two of them are at least one and a bit


@pytest.mark.parametrize("value", ["soon", "-3", "nan"])
def test_an_odd_retry_after_is_no_obstacle(value: str) -> None:
    with judge_server(first(Reply("slow down", 503, {"Retry-After": value}))) as server:
        assert backend(server).score(requests("a")) == [0.5]


def test_a_server_that_wants_hours_of_patience_is_given_up_on() -> None:
    with (
        judge_server(always(Reply("later", 429, {"Retry-After": "86400"}))) as server,
        pytest.raises(RewardError, match=r"HTTP 429.*Retry-After: 86400 s"),
    ):
        backend(server).score(requests("a"))
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "body",
    [
        '{"choices": [',
        "oops",
        "[]",
        '{"choices": []}',
        '{"choices": null}',
        '{"choices": [{}]}',
        '{"choices": [{"message": "0.5"}]}',
    ],
)
def test_replies_that_are_no_completion_are_retried(body: str) -> None:
    with judge_server(first(Reply(body))) as server:
        assert backend(server).score(requests("a")) == [0.5]
    with judge_server(always(Reply(body))) as server:
        with pytest.raises(RewardError, match="not a chat completion"):
            backend(server, max_retries=1).score(requests("a"))
        assert len(server.calls) == 2


def test_a_connection_that_breaks_in_the_reply_is_retried() -> None:
    with judge_server(first(Reply(completion("0.1"), cut=True))) as server:
        assert backend(server).score(requests("a")) == [0.5]
    assert len(server.calls) == 2


def test_no_server_is_a_failure_after_the_retries() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        judge = backend(f"http://127.0.0.1:{unused.getsockname()[1]}/v1", max_retries=2)
        with pytest.raises(RewardError, match="no connection"):
            judge.score(requests("a"))
    assert judge.stats()["retries"] == 2


def test_a_slow_reply_times_out_and_is_retried() -> None:
    with judge_server(first(Reply(completion("1"), delay=1.0))) as server:
        assert backend(server, timeout=0.2).score(requests("a")) == [0.5]
    with judge_server(always(Reply(completion("1"), delay=1.0))) as server:
        with pytest.raises(RewardError, match=r"no reply within 0.1 s \(timeout\)"):
            backend(server, timeout=0.1, max_retries=1).score(requests("a"))
        assert len(server.calls) == 2


def test_the_deadline_ends_a_round_and_keeps_what_arrived() -> None:
    def script(call: Call, number: int) -> Reply:
        return Reply(by_answer(call, number).body, delay=0.0 if number == 0 else 1.0)

    with judge_server(script) as server:
        judge = backend(server, deadline=0.4, max_concurrency=1, on_error="skip")
        start = time.monotonic()
        assert judge.score(requests("0.25", "0.5", "0.75")) == [0.25, None, None]
        assert time.monotonic() - start < 5
    assert judge.stats()["requests"] == len(server.calls) == 2


def test_no_retry_is_begun_that_ends_after_the_deadline() -> None:
    with judge_server(always(Reply("", 429, {"Retry-After": "9"}))) as server:
        with pytest.raises(RewardError, match="HTTP 429"):
            backend(server, deadline=5).score(requests("a"))
        assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("status", "on_error"), [(401, "raise"), (401, "zero"), (401, "skip"), (402, "raise"), (403, "skip"), (404, "zero")]
)
def test_a_refusal_stops_at_once_whatever_on_error_is(status: int, on_error: str) -> None:
    body = json.dumps({"error": {"message": f"no access with {KEY}"}})
    with judge_server(always(Reply(body, status))) as server:
        judge = backend(server, on_error=on_error, max_concurrency=1)
        with pytest.raises(RewardError, match=rf"HTTP {status}.*no access with \(redacted\)") as caught:
            judge.score(requests("a", "b", "c"))
    assert len(server.calls) == 1
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__cause__ is caught.value.__context__ is None


def test_a_redirect_is_not_followed() -> None:
    with judge_server(always(score(1))) as elsewhere:
        reply = Reply("", 307, {"Location": elsewhere.url + "/chat/completions"})
        with judge_server(always(reply)) as server, pytest.raises(RewardError, match="HTTP 307"):
            backend(server).score(requests("a"))
    assert not elsewhere.calls


def test_an_exhausted_quota_stops_too() -> None:
    body = json.dumps({"error": {"message": "quota", "code": "insufficient_quota"}})
    with judge_server(always(Reply(body, 429))) as server, pytest.raises(RewardError, match="quota"):
        backend(server).score(requests("a"))
    assert len(server.calls) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_refused_fails_alone(status: int) -> None:
    def script(call: Call, number: int) -> Reply:
        return Reply(f'{{"error": {{"message": "too long for {KEY}"}}}}', status) if "long" in call.prompt else score(1)

    with judge_server(script) as server:
        assert backend(server, on_error="skip").score(requests("a", "long", "b")) == [1.0, None, 1.0]
        assert len(server.calls) == 3
        with pytest.raises(RewardError, match=rf"sample '1': HTTP {status}.*\(redacted\)") as caught:
            backend(server).score(requests("a", "long"))
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_waiting_retries_are_cut_short_by_a_refusal() -> None:
    def script(call: Call, number: int) -> Reply:
        return Reply("", 429, {"Retry-After": "30"}) if number == 0 else Reply("", 401, delay=0.1)

    start = time.monotonic()
    with judge_server(script) as server, pytest.raises(RewardError, match="HTTP 401"):
        backend(server, max_concurrency=2).score(requests("a", "b"))
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "content", ["great answer!", '{"score": 7}', "", None, '{"score": 0.5} trailing {"score": 1.0}']
)
def test_an_unparsable_reply_is_asked_again_with_a_reminder(content: str | None) -> None:
    with judge_server(first(Reply(completion(content)))) as server:
        judge = backend(server)
        assert judge.score(requests("a")) == [0.5]
    question, again = (call.prompt for call in server.calls)
    assert again.startswith(question)
    assert len(again) > len(question)
    assert judge.stats()["unparsable"] == judge.stats()["retries"] == 1


@pytest.mark.parametrize("reason", ["length", "content_filter", "tool_calls", "function_call", "error", "", None, 3])
def test_a_reply_that_is_not_finished_is_no_score(reason: Any) -> None:
    reply = Reply(completion("0.9", finish_reason=reason))
    with judge_server(first(reply)) as server:
        judge = backend(server)
        assert judge.score(requests("a")) == [0.5]
        assert judge.stats()["unparsable"] == 1
    assert len(server.calls) == 2
    with (
        judge_server(always(reply)) as server,
        pytest.raises(RewardError, match=rf"finish_reason: {reason!r}\): '0.9'"),
    ):
        backend(server, parse_retries=1).score(requests("a"))


@pytest.mark.parametrize("reason", ["stop", "eos", "end_turn", "STOP"])
def test_servers_have_several_names_for_the_end(reason: str) -> None:
    with judge_server(always(Reply(completion("0.9", finish_reason=reason)))) as server:
        assert backend(server).score(requests("a")) == [0.9]


def choices(*contents: str, **message: Any) -> Reply:
    made = [
        {"index": row, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}
        for row, content in enumerate(contents)
    ]
    return Reply(json.dumps({"model": "judge", "choices": made}))


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (choices("0.9", "0.1"), r"2 choices that do not agree: \[0.9, 0.1\]"),
        (choices("0.9", "no"), "'no'"),
        (choices("0.9", refusal="I will not judge this."), "a refusal"),
        (choices("0.9", tool_calls=[{"id": "1"}]), "a tool call"),
    ],
)
def test_a_reply_that_contradicts_itself_is_no_score(reply: Reply, said: str) -> None:
    with judge_server(first(reply)) as server:
        assert backend(server, extra_body={"n": 2}).score(requests("a")) == [0.5]
    with judge_server(always(reply)) as server:
        judge = backend(server, on_error="skip", parse_retries=1)
        assert judge.score(requests("a")) == [None]
        with pytest.raises(RewardError, match=said):
            backend(server, parse_retries=0).score(requests("a"))


def test_choices_that_agree_are_a_score() -> None:
    with judge_server(always(choices("0.9", '{"score": 0.9}'))) as server:
        assert backend(server, extra_body={"n": 2}).score(requests("a")) == [0.9]


@pytest.mark.parametrize("charset", ["utf-16", "idna", "base64", "hex", "unknown-8bit", "\x7f", "rot13", "undefined"])
@pytest.mark.parametrize("status", [200, 500])
def test_the_charset_that_a_server_claims_does_not_matter(charset: str, status: int) -> None:
    body = completion('{"score": 0.25}') if status == 200 else '{"error": {"message": "über"}}'
    odd = Reply(body, status, {"Content-Type": f"application/json; charset={charset}"})
    with judge_server(first(odd)) as server:
        assert backend(server).score(requests("a")) == [0.25 if status == 200 else 0.5]


@pytest.mark.parametrize("body", [b"\xff\xfe\x00", b'{"choices": "\xe9"}', b"\x80" * 10])
def test_a_reply_that_is_no_text_is_a_failed_reply(body: bytes) -> None:
    with judge_server(first(Reply(body))) as server:
        assert backend(server).score(requests("a", "b")) == [0.5, 0.5]
    with judge_server(always(Reply(body))) as server, pytest.raises(RewardError, match="not a chat completion"):
        backend(server, max_retries=0).score(requests("a"))


@pytest.mark.parametrize(("on_error", "substitute"), [("zero", 0.0), ("skip", None)])
def test_unparsable_to_the_end_follows_on_error(
    on_error: str, substitute: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    def script(call: Call, number: int) -> Reply:
        return Reply(completion("I like it")) if "odd" in call.prompt else score(1)

    with judge_server(script) as server:
        judge = backend(server, on_error=on_error, parse_retries=2)
        assert judge.score(requests("a", "odd", "b")) == [1.0, substitute, 1.0]
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warnings) == 1
        assert "1 of 3 answers could not be scored" in warnings[0]
        assert len(server.calls) == 2 + 3
        with pytest.raises(RewardError, match=r"sample '1': the judge's reply is not a score, asked 3 times: 'I like"):
            backend(server).score(requests("a", "odd", "b"))
