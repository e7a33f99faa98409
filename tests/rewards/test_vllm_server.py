"""The backend against a stand-in for vLLM's server in a process of its own; ``tests/vllm`` runs the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataflex.errors import ConfigError, RewardError
from dataflex.rewards import server_process
from dataflex.rewards.judge import SCORE_PATTERN
from dataflex.rewards.vllm import PLAIN_CHAT_TEMPLATE
from dataflex.rewards.vllm_server import VllmServerReward
from dataflex.testing import tiny_tokenizer
from helpers.api_judge import by_answer, requests
from helpers.http_judge import judge_server

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., VllmServerReward]:
    """Builds backends whose server is the stand-in; a folder ``judge`` holds the tokenizer."""
    monkeypatch.setenv("PYTHONPATH", str(HELPERS / "fake_vllm"))
    monkeypatch.setenv("FAKE_VLLM_RECORD", str(tmp_path / "record.json"))
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_NO_USAGE_STATS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(server_process, "POLL_SECONDS", 0.02)
    tiny_tokenizer(chat_template="{{ messages }}").save_pretrained(tmp_path / "judge")
    built = []

    def build(**params: Any) -> VllmServerReward:
        defaults = {"hf_model_name_or_path": str(tmp_path / "judge"), "cache_path": None, "backoff": 0.01}
        defaults |= {"server_log": tmp_path / "server.log"}
        built.append(VllmServerReward.from_params({**defaults, **params}))
        return built[-1]

    yield build
    for backend in built:
        backend.close()


def record(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for yet does not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return False


def wait_for_end(*pids: int) -> None:
    end = time.monotonic() + 30
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_server_is_started_asked_and_stopped(judge, tmp_path):
    backend = judge()
    backend.check()
    assert not (tmp_path / "record.json").exists()
    assert backend.score(requests("a", "b", "a")) == [0.75, 0.75, 0.75]
    assert backend.stats()["requests"] == 2
    first = record(tmp_path)
    assert first["environment"] == {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1"}
    assert backend.score(requests("c")) == [0.75]
    assert record(tmp_path) == first
    backend.close()
    wait_for_end(first["pid"], first["worker"])
    assert "the engine is warming up" in (tmp_path / "server.log").read_text(encoding="utf-8")
    assert (tmp_path / "server.log").stat().st_mode & 0o077 == 0
    assert backend.score(requests("d")) == [0.75]
    assert record(tmp_path)["pid"] != first["pid"]


def test_the_documented_parameters_reach_the_server(judge, tmp_path):
    backend = judge(
        vllm_tensor_parallel_size=2,
        vllm_temperature=0.0,
        vllm_top_p=0.9,
        vllm_max_tokens=512,
        vllm_top_k=40,
        vllm_seed=42,
        vllm_max_model_len=2048,
        vllm_gpu_memory_utilization=0.8,
        vllm_enforce_eager=True,
        vllm_kv_cache_gib=0.5,
    )
    backend.score(requests("a"))
    options = record(tmp_path)["options"]
    assert options | {"port": 0} == {
        **{"model": str(tmp_path / "judge"), "served_model_name": str(tmp_path / "judge"), "host": "127.0.0.1"},
        **{"port": 0, "dtype": "auto", "seed": 42, "tensor_parallel_size": 2, "gpu_memory_utilization": 0.8},
        **{"max_model_len": 2048, "kv_cache_memory_bytes": 2**29, "chat_template": None, "generation_config": "vllm"},
        **{"uvicorn_log_level": "warning", "enforce_eager": True, "trust_remote_code": False},
        **{"enable_chunked_prefill": False, "load_format": "safetensors"},
    }
    assert backend.body() == {
        "model": str(tmp_path / "judge"),
        **{"temperature": 0.0, "top_p": 0.9, "max_tokens": 512, "seed": 42},
        "extra_body": {"top_k": 40, "structured_outputs": {"regex": SCORE_PATTERN}},
    }
    assert judge(vllm_constrain_reply=False).body()["extra_body"] == {"top_k": 40}
    assert record(tmp_path)["environment"] == {"VLLM_CPU_KVCACHE_SPACE": None, "VLLM_NO_USAGE_STATS": "1"}


def test_the_servers_key_is_in_no_command_line_and_no_file(judge, tmp_path):
    backend = judge(cache_path=tmp_path / "replies.sqlite")
    backend.score(requests("a"))
    key = backend.endpoint().key
    assert len(key) > 30
    command = Path(f"/proc/{record(tmp_path)['pid']}/cmdline").read_bytes()
    assert key.encode() not in command
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 3
    assert all(key.encode() not in file.read_bytes() for file in files)
    assert key not in repr(vars(backend))


def test_the_cache_survives_another_port(judge, tmp_path):
    first, second = (judge(cache_path=tmp_path / "replies.sqlite") for _ in range(2))
    assert first.score(requests("a")) == [0.75]
    first.close()
    (tmp_path / "record.json").unlink()
    assert second.score(requests("a")) == [0.75]
    assert second.stats()["cache_hits"] == 1
    assert not (tmp_path / "record.json").exists()


def test_the_cache_tells_judges_by_content_precision_and_options(judge, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages }}", encoding="utf-8")
    options = ["--chat-template", str(template), "--revision=main"]
    first = judge(server_options=options).identity()
    assert judge(server_options=options, server_port=1).identity() == first
    others = [judge().identity(), judge(server_options=options, vllm_dtype="float32").identity()]
    template.write_text("{{ bos_token }}", encoding="utf-8")
    others.append(judge(server_options=options).identity())
    template.write_text("{{ messages }}", encoding="utf-8")
    running = judge(server_options=options)
    assert running.identity() == first
    (tmp_path / "judge" / "model.safetensors").write_bytes(b"trained in place")
    others.append(judge(server_options=options).identity())
    assert first not in others
    assert running.identity() == first  # its server would have loaded the weights before
    running.close()
    assert running.identity() == others[-1]


def test_a_judge_of_the_hub_is_fetched_before_the_cache_is_asked(judge, monkeypatch):
    cached: dict[str, str] = {}
    backend = judge(hf_model_name_or_path="owner/judge")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: cached.get(name))
    fetch = {"owner/judge": "/cache/snapshots/abc123/config.json"}
    monkeypatch.setattr(backend, "endpoint", lambda: cached.update(fetch))
    assert backend.identity()[1] == {"model": "owner/judge", "revision": "abc123"}


def test_release_stops_the_server_after_each_round(judge, tmp_path):
    backend = judge(vllm_release=True)
    backend.score(requests("a"))
    wait_for_end(record(tmp_path)["pid"], record(tmp_path)["worker"])
    assert backend.score(requests("b")) == [0.75]


def test_a_judge_without_a_chat_template_gets_the_bare_prompt(judge, tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    backend = judge(hf_model_name_or_path=str(tmp_path / "base"))
    backend.score(requests("a"))
    assert record(tmp_path)["options"]["chat_template"] == PLAIN_CHAT_TEMPLATE


def test_a_server_that_dies_while_it_starts_shows_its_log(judge, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM_MODE", "dies")
    with pytest.raises(RewardError, match=r"ended with code 3 while it started(.|\n)*ValueError: no memory"):
        judge().score(requests("a"))


def test_a_server_that_never_answers_is_stopped_with_what_it_started(judge, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_VLLM_MODE", "silent")
    with pytest.raises(RewardError, match="not ready after 8 s") as caught:
        judge(server_start_timeout=8).score(requests("a"))
    assert "server_start_timeout" in str(caught.value)
    wait_for_end(record(tmp_path)["pid"], record(tmp_path)["worker"])


def test_a_server_that_died_between_rounds_is_started_again(judge, tmp_path, caplog):
    backend = judge()
    backend.score(requests("a"))
    pid = record(tmp_path)["pid"]
    os.kill(pid, 9)
    end = time.monotonic() + 10
    while backend._server.running:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert backend.score(requests("b")) == [0.75]
    assert record(tmp_path)["pid"] != pid
    assert "ended between two rounds" in caplog.text


SCRIPT = """
import sys
from dataflex.rewards.vllm_server import VllmServerReward
from helpers.api_judge import requests
backend = VllmServerReward(hf_model_name_or_path=sys.argv[1], cache_path=None, server_log=sys.argv[2])
print(backend.score(requests("a")), flush=True)
sys.stdin.read()
"""


@pytest.mark.integration
def test_no_server_outlives_a_killed_run(judge, tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (HELPERS / "fake_vllm", root / "tests", *filter(None, sys.path))))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("FAKE_VLLM_MODE", "stubborn")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "judge"), str(tmp_path / "log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "[0.75]\n"
        pids = record(tmp_path)["pid"], record(tmp_path)["worker"]
        assert all(map(is_alive, pids))
        run.kill()
    wait_for_end(*pids)


def test_a_running_server_is_asked_and_left_alone(judge, tmp_path):
    port, model = server_process.free_port(), str(tmp_path / "judge")
    options = ["--model", model, "--served-model-name", model, "--host", "127.0.0.1", "--port", str(port)]
    server = server_process.ServerProcess(
        sys.executable, ["-m", "vllm.entrypoints.openai.api_server", *options], {}, tmp_path / "log"
    )
    backend = judge(server_url=f"http://127.0.0.1:{port}/v1/", vllm_release=True)
    server.wait_until(lambda: not server_process.is_free(port), 30)
    backend.check()
    assert backend.score(requests("a", "b")) == [0.75, 0.75]
    assert server.running
    server.stop()
    with pytest.raises(RewardError, match="does not answer as vLLM does"):
        backend.score(requests("c"))


def test_a_running_server_must_be_the_judges(judge):
    started = judge()
    started.score(requests("a"))
    with pytest.raises(RewardError, match="does not answer as vLLM does"):  # it expects a key
        judge(server_url=started.endpoint().base_url).check()
    with judge_server(by_answer) as other:
        other.models = ["another"]
        with pytest.raises(RewardError, match=r"serves another, not .*\n.*hf_model_name_or_path must be"):
            judge(server_url=other.url).check()


def test_a_taken_port_is_found_before_training(judge):
    with judge_server(by_answer) as other, pytest.raises(RewardError, match=r"port \d+ of 127.0.0.1 is taken"):
        judge(server_port=int(other.url.split(":")[2].split("/")[0])).check()


def test_a_missing_judge_or_python_is_a_clear_error(judge, tmp_path):
    with pytest.raises(RewardError, match=r"the judge's tokenizer .*nowhere"):
        judge(hf_model_name_or_path=str(tmp_path / "nowhere")).check()
    with pytest.raises(RewardError, match=r"cannot be run: .*\n.*server_python"):
        judge(server_python=str(tmp_path / "python")).score(requests("a"))


@pytest.mark.parametrize("url", ["http://example.org/v1", "https://127.0.0.1/v1", "http://me:pw@127.0.0.1/v1", "x"])
def test_a_server_elsewhere_is_refused(judge, url):
    with pytest.raises(ConfigError, match="use the backend api"):
        judge(server_url=url)
