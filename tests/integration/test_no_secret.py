"""A planted key is in no file, log, message or traceback of a run, whatever the server does with it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from helpers.documented import documented_project
from helpers.http_judge import Call, Reply, judge_server, score

KEY = "sk-planted+7f/3c=91b"
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, with the key in its environment."""
    environment = {
        **os.environ,
        "DF_API_KEY": KEY,
        "XDG_CACHE_HOME": str(project / "cache"),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *filter(None, sys.path)]),
    }
    command = [sys.executable, "-m", "dataflex", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, check=False, timeout=400)


def configure(project: Path, url: str) -> None:
    """The documented parameters of the backend api, at another URL."""
    path = project / "src/dataflex/configs/components.yaml"
    components = yaml.safe_load(path.read_text(encoding="utf-8"))
    params = components.get("selectors", components)["nice"]["params"]
    params["reward_model_backend"] = "api"
    assert params["reward_backend_params"]["api"]["api_key"] == "DF_API_KEY"
    params["reward_backend_params"]["api"] |= {"api_url": url + "/chat/completions", "backoff": 0.01}
    path.write_text(yaml.safe_dump(components), encoding="utf-8")


def spellings() -> list[bytes]:
    """The key as it is, in JSON, and quoted for a URL."""
    return [KEY.encode(), json.dumps(KEY)[1:-1].encode(), b"sk-planted%2B7f%2F3c%3D91b", b"planted"]


def assert_clean(root: Path, *texts: bytes) -> None:
    files = [file for file in root.rglob("*") if file.is_file()]
    assert len(files) > 10
    for name, content in [*((str(file), file.read_bytes()) for file in files), *(("output", text) for text in texts)]:
        for spelling in spellings():
            assert spelling not in content, name


def echo(status: int) -> Reply:
    """An error that repeats the key in its message and its headers, as some proxies do."""
    message = f"no access for Bearer {KEY} ({KEY!r}); request: Authorization: Bearer {KEY}"
    return Reply(json.dumps({"error": {"message": message}}), status, {"X-Echo": KEY})


def test_a_run_leaves_no_key_behind(tmp_path: Path) -> None:
    project = documented_project(tmp_path)

    def script(call: Call, number: int) -> Reply:
        assert call.authorization == f"Bearer {KEY}"
        return echo(500) if number % 3 == 0 else score(number % 5 / 4)

    short = ["warmup_step=2", "update_step=2", "update_times=1", "early_stopping_steps=null", "eval_steps=2"]
    short.append("component_params={max_new_tokens: 8}")
    with judge_server(script) as server:
        configure(project, server.url)
        shown = run(project, "-v", "config", "show", "nice.yaml")
        done = run(project, "-v", "train", "nice.yaml", *short)
    assert done.returncode == 0, done.stderr.decode()
    assert shown.returncode == 0
    assert server.calls
    assert b"DF_API_KEY" in (tmp_path / "dataflex_saves" / "nice_output" / "config.yaml").read_bytes()
    assert_clean(tmp_path, done.stdout, done.stderr, shown.stdout, shown.stderr)


@pytest.mark.parametrize("status", [401, 400])
def test_an_error_with_its_traceback_shows_no_key(status: int, tmp_path: Path) -> None:
    project = documented_project(tmp_path)
    short = ["warmup_step=1", "update_step=1", "update_times=1", "early_stopping_steps=null", "eval_steps=1"]
    short.append("component_params={max_new_tokens: 4}")
    with judge_server(lambda call, number: echo(status)) as server:
        configure(project, server.url)
        failed = run(project, "-v", "--traceback", "train", "nice.yaml", *short)
    assert failed.returncode == 1
    assert b"Traceback" in failed.stderr
    assert b"(redacted)" in failed.stderr
    assert_clean(tmp_path, failed.stdout, failed.stderr)


def test_a_literal_key_in_the_yaml_is_refused_and_not_repeated(tmp_path: Path) -> None:
    project = documented_project(tmp_path)
    configure(project, "http://127.0.0.1:9/v1")
    path = project / "src/dataflex/configs/components.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("DF_API_KEY", KEY), encoding="utf-8")
    failed = run(project, "--traceback", "train", "nice.yaml")
    assert failed.returncode == 1
    assert b"put it in the environment" in b" ".join(failed.stderr.split())
    assert all(spelling not in failed.stdout + failed.stderr for spelling in spellings())


def test_no_library_logs_the_key_at_its_most_talkative(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    from helpers.api_judge import backend, by_answer, requests

    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    with caplog.at_level(logging.DEBUG), judge_server(by_answer) as server:
        backend(server).score(requests("0.5", "0.25"))
    assert len(caplog.records) > 10
    assert "planted" not in caplog.text
