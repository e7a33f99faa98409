from __future__ import annotations

import html
import json
import sys
import traceback
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from dataflex.errors import ConfigError, RewardError
from dataflex.rewards import resolve_reward
from dataflex.rewards.api import ApiReward
from dataflex.selectors.nice import NiceSelector
from helpers.api_judge import KEY, always, backend, by_answer, requests
from helpers.http_judge import Reply, completion, judge_server

AWKWARD = "sk-planted\"+'7f\\3c<&%>=91b"
"""What a header can carry, and every notation writes otherwise."""


def test_no_key_for_a_server_on_this_machine() -> None:
    with judge_server(by_answer) as server:
        assert backend(server, api_key=None).score(requests("0.5")) == [0.5]
    assert KEY not in str(server.calls[0].authorization)
    with pytest.raises(RewardError, match=r"api_key: null is for servers on this machine.*'example.org'"):
        backend("http://example.org/v1", api_key=None).check()


def test_a_proxy_is_not_used_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with judge_server(by_answer) as server:
        assert backend(server, max_retries=0).score(requests("0.5")) == [0.5]


def test_a_missing_key_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_JUDGE_KEY")
    with pytest.raises(RewardError, match=r"TEST_JUDGE_KEY, which api_key names, is not set\n.*export TEST_JUDGE_KEY="):
        backend("https://example.org/v1").check()


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("sk-planted\nsecond91b", "a line break"),
        ("sk-planted\r\nX-Header: 91b", "a line break: that is no key"),
        ("Bearer sk-planted91b", "white space"),
        ("sk-\u2028planted91b", "a line break"),
        ("sk-plantéd91b", "a character that is not printable ASCII"),
        ("sk-planted\x1b91b", "a character that is not printable ASCII"),
        ("\N{LEFT DOUBLE QUOTATION MARK}sk-planted91b\N{RIGHT DOUBLE QUOTATION MARK}", "a character that is not"),
        ("sk-planted\udcff91b", "a character that is not printable ASCII"),
    ],
)
def test_what_no_header_can_carry_is_refused_and_not_shown(
    key: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", key)
    with judge_server(by_answer) as server:
        judge = backend(server)
        for attempt in (judge.check, lambda: judge.score(requests("0.5"))):
            with pytest.raises(
                RewardError, match=f"variable TEST_JUDGE_KEY, which api_key names, holds {said}"
            ) as found:
                attempt()
            shown = "".join(traceback.format_exception(found.value)) + caplog.text
            assert not any(part in shown for part in ("planted", "plant\\xe9d", "plantéd", "second91b", "X-Header"))
    assert not server.calls
    assert not server.knocks


def test_a_line_break_at_the_end_of_a_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", f" {KEY}\r\n")
    with judge_server(by_answer) as server:
        assert backend(server).score(requests("0.5")) == [0.5]
    assert server.calls[0].authorization == f"Bearer {KEY}"


SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "repr": repr,
    "json": json.dumps,
    "json in json": lambda key: json.dumps(json.dumps(key)),
    "percent": lambda key: quote(key, safe=""),
    "html": html.escape,
    "unicode": lambda key: "".join(f"\\u{ord(c):04x}" for c in key),
    "base64": lambda key: b64encode(f"Bearer {key}".encode()).decode(),
    "stars": lambda key: f"{key[:9]}*****{key[-3:]}",
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("status", [401, 400, 500, 200, 299])
def test_a_key_that_a_server_repeats_is_nowhere(
    status: int,
    spell: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("TEST_JUDGE_KEY", AWKWARD)
    echo = spell(AWKWARD)
    body = {
        200: completion(f"no score for {echo}"),
        299: json.dumps({"choices": [], "message": echo}),
    }.get(status, json.dumps({"error": {"message": f"no access for {echo}; Authorization: Bearer {echo}"}}))
    reply = Reply(body, min(status, 200) if status == 299 else status, {"X-Echo": echo}, reason=f"Refused {echo}")
    with judge_server(always(reply)) as server:
        judge = backend(server, max_retries=1, parse_retries=1, cache_path=tmp_path / "replies.sqlite")
        with pytest.raises(RewardError, match=r"\(redacted\)") as caught:
            judge.score(requests("a"))
    assert server.calls[0].authorization == f"Bearer {AWKWARD}"
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(vars(judge)) + repr(kept)
    coded = [b64encode(b"\0" * offset + AWKWARD.encode()).decode()[4:12] for offset in range(3)]
    assert not [part for part in ("planted", "=91b", "%3D91b", r"\u0070\u006c", *coded) if part in shown]


def test_a_judge_that_repeats_the_key_in_its_judgement_leaves_none_in_the_cache(tmp_path: Path) -> None:
    reply = Reply(completion(json.dumps({"score": 0.25, "reason": f"the key is {KEY}"}), model=f"judge {KEY}"))
    with judge_server(always(reply)) as server:
        assert backend(server, cache_path=tmp_path / "replies.sqlite").score(requests("a")) == [0.25]
        assert backend(server, cache_path=tmp_path / "replies.sqlite").score(requests("a")) == [0.25]
        assert len(server.calls) == 1
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b'{"score": 0.25}' in kept
    assert KEY.encode() not in kept
    assert b"reason" not in kept


@pytest.mark.parametrize("literal", [KEY, "gsk_abcdef0123456789", "Bearer X", ""])
def test_a_literal_key_is_an_error_that_does_not_show_it(literal: str) -> None:
    with pytest.raises(ConfigError, match="name of an environment variable") as caught:
        backend("https://example.org/v1", api_key=literal)
    assert not literal or literal not in str(caught.value)


@pytest.mark.parametrize(
    "url", [f"https://user:{KEY}@example.org/v1", f"https://example.org/v1?key={KEY}", f"ftp://{KEY}", KEY]
)
def test_a_url_with_a_secret_is_an_error_that_does_not_show_it(url: str) -> None:
    with pytest.raises(ConfigError, match="api_url") as caught:
        backend(url)
    assert KEY not in str(caught.value)


def test_wrong_parameters_are_reported_at_once_without_the_key() -> None:
    with pytest.raises(ConfigError) as caught:
        ApiReward.from_params({"api_key": KEY, "api_url": "x", "timeout": 0, "modelname": "judge"})
    assert len(caught.value.problems) == 5
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    "params",
    [
        {"api_key": KEY},
        {"api_url": f"https://user:{KEY}@example.org/v1"},
        {"api_url": f"https://example.org/v1?key={KEY}"},
        {"extra_body": {"messages": [KEY]}},
    ],
)
def test_tracebacks_of_wrong_parameters_do_not_show_them(params: dict[str, Any]) -> None:
    """In Python they end in logs, with the errors of pydantic that are behind ours."""
    whole = {"api_url": "https://example.org/v1", "model_name": "judge", **params}
    for make in (
        lambda: resolve_reward("api", whole),
        lambda: NiceSelector(reward={"name": "api", "params": whole}),
        lambda: NiceSelector(reward_model_backend="api", reward_backend_params={"api": whole}),
    ):
        with pytest.raises(ConfigError) as caught:
            make()
        assert KEY not in "".join(traceback.format_exception(caught.value))


def test_the_key_is_in_no_representation() -> None:
    judge = backend("https://example.org/v1")
    shown = [
        repr(judge),
        repr(judge.config),
        judge.config.model_dump_json(),
        repr(judge.endpoint()),
        repr(vars(judge)),
    ]
    assert all(KEY not in text for text in shown)


@pytest.mark.parametrize("package", ["httpx2", "tenacity"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = backend("https://example.org/v1")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RewardError, match=rf'{package}\n.*pip install "dataflex-sdk\[api\]"'):
        judge.check()
