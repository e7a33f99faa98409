"""A real judge in vLLM, in this process and as a server, and NICE with it from the published parameters."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest
import yaml

import dataflex
from dataflex.rewards.vllm import LocalVllmReward
from dataflex.rewards.vllm_server import VllmServerReward
from dataflex.types import RewardRequest
from helpers.documented import PRINTED_VLLM_PARAMS, documented_project

# vLLM's own warnings are no errors of ours.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

PARAMS = PRINTED_VLLM_PARAMS | {"vllm_dtype": "float32", "vllm_enforce_eager": True, "vllm_kv_cache_gib": 1.0}
"""Rounding in 16 bits would flip near-ties between two batches; without compilation the engine starts sooner. SmolLM2
is too small to judge: it gives every answer 1.0, at temperature 2 still. What is shown is that scores arrive, not that
they are just."""

CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Peru": "Lima", "Japan": "Tokyo", "Egypt": "Cairo"}
CAPITALS |= {"Norway": "Oslo", "Cuba": "Havana"}


def answers_to_grade() -> list[RewardRequest]:
    """32 answers to 8 questions: right, right with more words, wrong, beside the point."""
    countries = sorted(CAPITALS)
    found = []
    for row, country in enumerate(countries):
        wrong = CAPITALS[countries[(row + 1) % len(countries)]]
        texts = (CAPITALS[country], f"It is {CAPITALS[country]}, a large city.", f"{wrong}.", "I like green apples.")
        for text in texts:
            prompt = ({"role": "user", "content": f"What is the capital of {country}?"},)
            found.append(RewardRequest(f"{country}-{len(found)}", prompt, text, CAPITALS[country]))
    return found


@pytest.fixture(scope="module")
def in_process(model_path):
    """Rewards of the 32 answers by the engine in this process, which is stopped afterwards."""
    judge = LocalVllmReward(hf_model_name_or_path=model_path, **PARAMS)
    try:
        start = time.perf_counter()
        rewards = judge.score(answers_to_grade())
        first = time.perf_counter() - start
        again = judge.score(answers_to_grade()[::-1])[::-1]
        print(
            f"\nin process: {first:.1f} s with the start, {judge.stats()['seconds'] - first:.1f} s for a second round"
        )
    finally:
        judge.close()
    print(f"rewards: {rewards}")
    assert again == rewards
    return rewards


def test_a_judge_in_this_process_scores_32_answers(in_process):
    assert len(in_process) == 32
    assert all(0 <= reward <= 1 for reward in in_process)


def test_a_judge_in_a_server_gives_the_same_scores(in_process, model_path, tmp_path):
    judge = VllmServerReward(
        hf_model_name_or_path=model_path,
        cache_path=tmp_path / "replies.sqlite",
        server_log=tmp_path / "server.log",
        **PARAMS,
    )
    try:
        start = time.perf_counter()
        rewards = judge.score(answers_to_grade())
        print(f"\nserver: {time.perf_counter() - start:.1f} s with the start; {judge.stats()}")
        key = judge.endpoint().key
    finally:
        judge.close()
    print(f"rewards: {rewards}")
    assert judge.stats()["requests"] == 32
    # Other batches round otherwise; a near-tie may flip, a systematic difference may not.
    assert sum(a == b for a, b in zip(rewards, in_process, strict=True)) >= 30
    assert all(key.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    unasked = VllmServerReward(hf_model_name_or_path=model_path, cache_path=tmp_path / "replies.sqlite", **PARAMS)
    assert unasked.score(answers_to_grade()) == rewards
    assert unasked.stats()["requests"] == 0


def test_nice_runs_from_the_published_parameters(model_path, tmp_path, monkeypatch):
    root = documented_project(tmp_path)
    path = root / "src/dataflex/configs/components.yaml"
    components = yaml.safe_load(path.read_text(encoding="utf-8"))
    params = components.get("selectors", components)["nice"]["params"]
    assert params["reward_model_backend"] == "local_vllm"
    local = params["reward_backend_params"]["local_vllm"]
    assert local == {"hf_model_name_or_path": "meta-llama/Llama-3.1-8B", **PRINTED_VLLM_PARAMS}
    local["hf_model_name_or_path"] = model_path
    path.write_text(yaml.safe_dump(components), encoding="utf-8")
    monkeypatch.chdir(root)
    start = time.perf_counter()
    fewer = ["warmup_step=2", "update_step=2", "update_times=1", "early_stopping_steps=null", "eval_steps=2"]
    # The answers of an untrained model are long and random: a few tokens will do.
    fewer += ["component_params.max_new_tokens=16", "component_params.on_no_signal=reference"]
    results = dataflex.train("nice.yaml", *fewer)
    out = root.parent / "dataflex_saves" / "nice_output"
    rows = [json.loads(line) for line in (out / "rollouts" / "step-2.jsonl").read_text(encoding="utf-8").splitlines()]
    print(
        f"\nNICE with a judge in vLLM: {time.perf_counter() - start:.1f} s; rewards {[row['reward'] for row in rows]}"
    )
    assert results["selections"] == 1
    assert len(rows) == 2 * 4
    assert all(0 <= row["reward"] <= 1 for row in rows)


def test_nothing_of_vllm_is_left_running():
    """After the engines and the server above: no process of theirs is a child of this one, or an orphan of it."""
    commands = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                commands[folder.name] = (folder / "cmdline").read_bytes().decode().replace("\0", " ")
            except OSError:
                continue
    ours = [text for text in commands.values() if sys.executable in text and ("vllm.entry" in text or "VLLM::" in text)]
    assert not ours
