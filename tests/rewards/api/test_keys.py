from __future__ import annotations

import sys

import pytest

from dataflex.errors import ConfigError, RewardError
from dataflex.rewards.api import ApiReward
from helpers.api_judge import KEY, backend, by_answer, requests
from helpers.http_judge import judge_server


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


def test_the_key_is_in_no_representation() -> None:
    judge = backend("https://example.org/v1")
    judge.check()
    shown = [
        repr(judge),
        repr(judge.config),
        judge.config.model_dump_json(),
        repr(judge.endpoint()),
        repr(vars(judge)),
    ]
    assert all(KEY not in text for text in shown)


@pytest.mark.parametrize("package", ["openai", "tenacity"])
def test_a_missing_package_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = backend("https://example.org/v1")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RewardError, match=rf'{package}\n.*pip install "dataflex-sdk\[api\]"'):
        judge.check()
