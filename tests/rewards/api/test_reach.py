"""What cannot work is found by check(), before anything is trained; and nothing is sent but what was configured."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from dataflex.errors import ConfigError, RewardError
from helpers.api_judge import KEY, backend, by_answer, requests
from helpers.http_judge import judge_server

VARIABLES = {
    "OPENAI_API_KEY": "sk-other",
    "OPENAI_ORG_ID": "org-1",
    "OPENAI_PROJECT_ID": "project-1",
    "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
    "OPENAI_CUSTOM_HEADERS": "X-Custom: 1\nAuthorization: Bearer sk-other",
    "OPENAI_ADMIN_KEY": "sk-admin",
}


def test_only_what_the_configuration_names_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    with judge_server(by_answer) as server:
        assert backend(server).score(requests("0.5")) == [0.5]
        (call,) = server.calls
        assert call.headers.pop("user-agent").startswith("dataflex/")
        assert int(call.headers.pop("content-length")) > 0
        assert call.headers == {
            "host": server.url.removeprefix("http://").removesuffix("/v1"),
            "accept": "application/json",
            "accept-encoding": "identity",
            "connection": "keep-alive",
            "authorization": f"Bearer {KEY}",
            "content-type": "application/json",
        }
        assert backend(server, api_key=None).score(requests("0.5")) == [0.5]
        assert server.calls[1].authorization is None


def test_a_server_is_reached_without_a_key_and_without_a_question() -> None:
    with judge_server(by_answer) as server:
        backend(server).check()
        assert not server.calls
        (knock,) = server.knocks
        assert "authorization" not in knock
        backend(server).score(requests("0.5"))
        assert len(server.knocks) == 1


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.mark.parametrize(
    ("scheme", "variable", "value", "said"),
    [
        ("http", "HTTP_PROXY", "foo://user:secret@127.0.0.1:1", "Unknown scheme for proxy"),
        ("https", "https_proxy", "socks5://127.0.0.1:1", "socks"),
        ("http", "ALL_PROXY", "http://[::1", "ValueError|InvalidURL"),
        ("https", "SSL_CERT_FILE", "/nowhere/ca.pem", "FileNotFoundError"),
        ("https", "SSL_CERT_FILE", "{file}", "SSLError"),
        ("http", "HTTP_PROXY", "http://user:secret@127.0.0.1:{port}", "cannot be reached: no connection"),
        ("https", "HTTPS_PROXY", "127.0.0.1:{port}", "cannot be reached: no connection"),
    ],
)
def test_an_environment_that_cannot_work_is_found_before_training(
    scheme: str, variable: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    (tmp_path / "ca.pem").write_text("no certificate", encoding="utf-8")
    monkeypatch.setenv(variable, value.format(port=closed_port(), file=tmp_path / "ca.pem"))
    with pytest.raises(RewardError, match=said) as caught:
        backend(f"{scheme}://judge.invalid/v1").check()
    assert "secret" not in str(caught.value)
    assert variable in str(caught.value.hint)
    assert caught.value.__cause__ is None


def test_a_server_that_is_not_there_is_found_before_training() -> None:
    with pytest.raises(RewardError, match=r"http://127.0.0.1:\d+/v1 cannot be reached: no connection"):
        backend(f"http://127.0.0.1:{closed_port()}/v1").check()
    with pytest.raises(RewardError, match=r"judge.invalid/v1 cannot be reached: no connection"):
        backend("https://judge.invalid/v1").check()


def test_a_server_without_a_certificate_is_found_before_training() -> None:
    with judge_server(by_answer) as server, pytest.raises(RewardError, match=r"cannot be reached: .*SSL"):
        backend(server.url.replace("http:", "https:")).check()


def test_a_server_that_says_nothing_is_found_before_training() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(RewardError, match=r"cannot be reached: no reply within 0.2 s"):
            backend(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout=0.2).check()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.org:99999/v1", "the port is not a number from 1 to 65535"),
        ("https://example.org:0/v1", "the port"),
        ("https://example.org:port/v1", "the port"),
        ("https://example.org:/v1", "the port"),
        ("https://exa mple.org/v1", "no server can have this host name"),
        ("https://a..b/v1", "no server can have"),
        ("https://-a.org/v1", "no server can have"),
        (f"https://{'a' * 64}.org/v1", "no server can have"),
        ("https://{host}/v1", "no server can have"),
        ("https://[::1/v1", "api_url"),
    ],
)
def test_a_url_that_cannot_work_is_an_error_of_the_configuration(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        backend(url)


@pytest.mark.parametrize("url", ["http://[::1]:8000/v1", "https://bücher.example/v1", "http://my_judge:80/v1"])
def test_unusual_hosts_are_fine(url: str) -> None:
    assert backend(url).config.api_url == url


def test_a_key_that_travels_in_the_open_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dataflex.rewards.wire.reach", lambda endpoint, timeout: None)
    backend("http://judge.example/v1").check()
    backend("https://judge.example/v1").check()
    backend("http://127.0.0.1:1/v1").check()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "the key in TEST_JUDGE_KEY goes to judge.example without encryption: use https:// if the server has it"
    ]


@pytest.mark.parametrize("body", [{"stream": True}, {"messages": []}, {"x": float("nan")}, {"x": {1, 2}}])
def test_a_body_that_cannot_be_sent_is_an_error_of_the_configuration(body: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="extra_body: "):
        backend("https://example.org/v1", extra_body=body)
