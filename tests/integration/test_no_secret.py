"""A planted key is in no file, log, message or traceback of a run, whatever the server does with it."""

from __future__ import annotations

import html
import json
import logging
import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from helpers.documented import documented_project
from helpers.http_judge import Call, Reply, completion, judge_server

KEY = "sk-\"planted'+7f/3c\\d<&%>=91b"
"""Every notation writes it otherwise."""
UNFIT = [
    "sk-planted\nsk-second-91b",
    "sk-plantéd91b",
    "\N{LEFT DOUBLE QUOTATION MARK}sk-planted91b",
    "Bearer sk-planted91b",
]
"""What cannot be a key: two lines of a file, and what copying from a page or a command leaves."""
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def run(project: Path, *arguments: str, key: str = KEY) -> subprocess.CompletedProcess[bytes]:
    """The command line in a process of its own, with the key in its environment."""
    environment = {
        **os.environ,
        "DF_API_KEY": key,
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


def spelled() -> list[str]:
    """The key as servers and proxies repeat it."""
    return [
        KEY,
        repr(KEY),
        json.dumps(KEY),
        json.dumps(json.dumps(KEY)),
        quote(KEY, safe=""),
        html.escape(KEY),
        "".join(f"\\u{ord(character):04x}" for character in KEY),
        b64encode(f"Bearer {KEY}".encode()).decode(),
        b64encode(KEY.encode()).decode(),
        f"{KEY[:8]}********{KEY[-4:]}",
    ]


def spellings() -> list[bytes]:
    """The key in all spellings, and parts of it that are nowhere else."""
    parts = ["planted", "plant\\xe9d", "plantéd", "sk-second", "=91b", "%3D91b", r"\u0070\u006c\u0061"]
    coded = [b64encode(b"\0" * offset + KEY.encode())[8:-8] for offset in range(3)]
    return [*(text.encode() for text in [*spelled(), *parts]), *coded]


def assert_clean(root: Path, *texts: bytes) -> None:
    files = [file for file in root.rglob("*") if file.is_file()]
    assert len(files) > 10
    for name, content in [*((str(file), file.read_bytes()) for file in files), *(("output", text) for text in texts)]:
        for spelling in spellings():
            assert spelling not in content, name


def echo(status: int) -> Reply:
    """An error that repeats the key in its message and its headers, as some proxies do."""
    message = f"no access for Bearer {', '.join(spelled())}"
    return Reply(json.dumps({"error": {"message": message}}), status, {"X-Echo": KEY}, reason=f"Refused {KEY}")


def judged(value: float) -> Reply:
    """A judgement that repeats the key beside the score."""
    return Reply(completion(json.dumps({"score": value, "request": spelled()}), model=f"judge for {KEY!r}"))


def test_a_run_leaves_no_key_behind(tmp_path: Path) -> None:
    project = documented_project(tmp_path)

    def script(call: Call, number: int) -> Reply:
        assert call.authorization == f"Bearer {KEY}"
        if number % 7 == 1:
            return Reply(completion(f"I cannot judge {spelled()}"))
        return echo(500) if number % 3 == 0 else judged(number % 5 / 4)

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


@pytest.mark.parametrize("status", [401, pytest.param(400, marks=pytest.mark.exhaustive)])
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


@pytest.mark.parametrize("key", [UNFIT[0], *(pytest.param(key, marks=pytest.mark.exhaustive) for key in UNFIT[1:])])
def test_what_cannot_be_a_key_is_refused_before_training_and_not_shown(key: str, tmp_path: Path) -> None:
    project = documented_project(tmp_path)
    with judge_server(lambda call, number: judged(1)) as server:
        configure(project, server.url)
        failed = run(project, "-v", "--traceback", "train", "nice.yaml", key=key)
    assert failed.returncode == 1
    assert b"DF_API_KEY, which api_key names, holds" in b" ".join(failed.stderr.split())
    assert not server.calls
    assert not list(tmp_path.rglob("checkpoint-*"))
    assert_clean(tmp_path, failed.stdout, failed.stderr)


def test_a_literal_key_in_the_yaml_is_refused_and_not_repeated(tmp_path: Path) -> None:
    project = documented_project(tmp_path)
    configure(project, "http://127.0.0.1:9/v1")
    path = project / "src/dataflex/configs/components.yaml"
    text = path.read_text(encoding="utf-8").replace("DF_API_KEY", json.dumps(KEY))
    path.write_text(text, encoding="utf-8")
    failed = run(project, "--traceback", "train", "nice.yaml")
    assert failed.returncode == 1
    assert b"put it in the environment" in b" ".join(failed.stderr.split())
    assert all(spelling not in failed.stdout + failed.stderr for spelling in spellings())


def test_no_library_logs_the_key_at_its_most_talkative(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    from helpers.api_judge import backend, by_answer, requests

    monkeypatch.setenv("TEST_JUDGE_KEY", KEY)
    with caplog.at_level(logging.DEBUG), judge_server(by_answer) as server:
        logging.getLogger("httpcore2.http11").setLevel(logging.DEBUG)
        backend(server).score(requests("0.5", "0.25"))
        server.script = lambda call, number: echo(500)
        assert backend(server, max_retries=1, on_error="skip").score(requests("0.5")) == [None]
    logging.getLogger("httpcore2.http11").setLevel(logging.NOTSET)
    assert "(redacted)" in caplog.text
    assert not [spelling for spelling in spellings() if spelling.decode() in caplog.text]
