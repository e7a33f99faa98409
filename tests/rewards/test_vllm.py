"""The backend against a fake ``vllm`` that accepts what vLLM 0.32 accepts; ``tests/vllm`` runs real engines."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dataflex.errors import ConfigError, RewardError
from dataflex.rewards.judge import SCORE_PATTERN
from dataflex.rewards.vllm import PLAIN_CHAT_TEMPLATE, LocalVllmReward
from dataflex.testing import RewardContract
from dataflex.types import RewardRequest
from helpers.documented import PRINTED_VLLM_PARAMS

ENGINE_OPTIONS = {"trust_remote_code", "tensor_parallel_size", "dtype", "seed", "gpu_memory_utilization"} | {
    "enforce_eager",
    "max_model_len",
    "kv_cache_memory_bytes",
    "enable_chunked_prefill",
    "load_format",
}
SAMPLING_OPTIONS = {"temperature", "top_p", "top_k", "max_tokens", "seed", "structured_outputs"}
"""Keyword arguments of vLLM 0.32 (its ``LLM`` and engine arguments, its ``SamplingParams``) that may be used here."""


@dataclass
class FakeTokenizer:
    """One token a word."""

    chat_template: str | None = "{{ messages }}"
    all_special_tokens: Sequence[str] = ("<stop>",)

    def get_added_vocab(self) -> dict[str, int]:
        return {"<stop>": 1, "[TURN]": 2, "word": 3, "  ": 4, "\n": 5}

    def apply_chat_template(
        self, conversation: Any, *, chat_template: str | None, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        assert add_generation_prompt
        assert (chat_template is None) == (self.chat_template is not None)
        return " ".join(message["content"] for message in conversation)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [0] * len(text.split())


@dataclass
class FakeVllm:
    """What happened to the fake, and how its judge replies."""

    reply: Callable[[str], str] = lambda prompt: '{"score": 0.5}'
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    max_model_len: int = 2000
    finish_reason: str = "stop"
    fails: bool = False
    has_gpu: bool = True
    engines: list[dict[str, Any]] = field(default_factory=list)
    sampling: list[dict[str, Any]] = field(default_factory=list)
    calls: list[list[str]] = field(default_factory=list)
    templates: list[str | None] = field(default_factory=list)
    shutdowns: int = 0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    state = FakeVllm()

    def shutdown() -> None:
        state.shutdowns += 1

    def completion(prompt: str) -> SimpleNamespace:
        return SimpleNamespace(text=state.reply(prompt), finish_reason=state.finish_reason)

    class LLM:
        def __init__(self, model: str, **options: Any) -> None:
            assert set(options) <= ENGINE_OPTIONS
            if state.fails:
                raise ValueError("No available memory for the cache blocks")
            state.engines.append({"model": model, **options})
            self.model_config = SimpleNamespace(max_model_len=state.max_model_len)
            self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=shutdown))

        def get_tokenizer(self) -> FakeTokenizer:
            return state.tokenizer

        def chat(
            self,
            messages: list[list[dict[str, str]]],
            sampling_params: Any = None,
            use_tqdm: bool = True,
            chat_template: str | None = None,
        ) -> list[Any]:
            assert all([message["role"] for message in conversation] == ["user"] for conversation in messages)
            prompts = [conversation[0]["content"] for conversation in messages]
            state.calls.append(prompts)
            state.templates.append(chat_template)
            return [SimpleNamespace(outputs=[completion(prompt)]) for prompt in prompts]

    class SamplingParams:
        def __init__(self, **options: Any) -> None:
            assert set(options) <= SAMPLING_OPTIONS
            state.sampling.append(options)

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    platforms = ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: not state.has_gpu)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)
    params = ModuleType("vllm.sampling_params")
    params.StructuredOutputsParams = lambda regex: regex  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    return state


def judge(**params: Any) -> LocalVllmReward:
    return LocalVllmReward.from_params({"hf_model_name_or_path": "judge", **params})


def requests(*answers: str) -> list[RewardRequest]:
    prompt = ({"role": "user", "content": "?"},)
    return [RewardRequest(str(row), prompt, answer) for row, answer in enumerate(answers)]  # type: ignore[arg-type]


def test_the_published_parameters_reach_the_engine(fake: FakeVllm) -> None:
    assert LocalVllmReward.from_params(
        {"hf_model_name_or_path": "meta-llama/Llama-3.1-8B", **PRINTED_VLLM_PARAMS}
    ).score(requests("a")) == [0.5]
    assert fake.engines == [
        {
            "model": "meta-llama/Llama-3.1-8B",
            "trust_remote_code": False,
            "tensor_parallel_size": 1,
            "dtype": "auto",
            "load_format": "safetensors",
            "seed": 42,
            "gpu_memory_utilization": 0.9,
            "enforce_eager": False,
            "max_model_len": None,
        }
    ]
    assert fake.sampling == [
        {
            **{"temperature": 0.0, "top_p": 0.9, "top_k": 40, "max_tokens": 512, "seed": 42},
            "structured_outputs": SCORE_PATTERN,
        }
    ]


def test_other_parameters_reach_the_engine_too(fake: FakeVllm) -> None:
    judge(
        vllm_dtype="float32",
        vllm_enforce_eager=True,
        vllm_max_model_len=900,
        trust_remote_code=True,
        vllm_seed=7,
        vllm_constrain_reply=False,
    ).score(requests("a"))
    (engine,) = fake.engines
    assert fake.sampling[0]["structured_outputs"] is None
    assert engine["dtype"] == "float32"
    assert engine["enforce_eager"] is engine["trust_remote_code"] is True
    assert (engine["max_model_len"], engine["seed"], fake.sampling[0]["seed"]) == (900, 7, 7)


def test_without_a_gpu_the_cache_is_small_unless_it_is_set_and_nothing_is_compiled_or_read_in_pieces(
    fake: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.has_gpu = False
    judge().score(requests("a"))
    judge(vllm_kv_cache_gib=0.5).score(requests("a"))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    judge().score(requests("a"))
    assert [engine.get("kv_cache_memory_bytes") for engine in fake.engines] == [2 * 2**30, 2**29, None]
    assert all(engine["enforce_eager"] and not engine["enable_chunked_prefill"] for engine in fake.engines)


def test_usage_reports_are_off_unless_the_user_wants_them(fake: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_NO_USAGE_STATS")
    judge().check()
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    judge().check()
    assert os.environ["VLLM_NO_USAGE_STATS"] == "0"


def test_all_answers_go_in_one_call_in_order_and_equal_ones_once(fake: FakeVllm) -> None:
    fake.reply = lambda prompt: f'{{"score": {prompt.count("x") % 3 / 2}}}'
    backend = judge(judge_prompt="{{ answer }}")
    answers = requests("x", "o", "xx", "x")
    found = backend.score(answers)
    assert len(fake.calls) == 1
    assert len(fake.calls[0]) == 3
    assert found == [float(fake.reply(backend._prompt.render(answer))[10:-1]) for answer in answers]
    assert backend.stats()["requests"] == 3
    assert backend.stats()["cache_hits"] == 1


def test_the_engine_starts_once_and_is_freed_by_close(fake: FakeVllm) -> None:
    backend = judge()
    assert not fake.engines
    backend.score(requests("a"))
    backend.score(requests("b"))
    assert (len(fake.engines), fake.shutdowns) == (1, 0)
    backend.close()
    backend.close()
    assert fake.shutdowns == 1
    backend.score(requests("c"))
    assert len(fake.engines) == 2


def test_release_frees_the_engine_after_each_round(fake: FakeVllm) -> None:
    backend = judge(vllm_release=True)
    backend.score(requests("a"))
    fake.reply = lambda prompt: "no"
    with pytest.raises(RewardError):
        backend.score(requests("b"))
    assert (len(fake.engines), fake.shutdowns) == (2, 2)


def test_nothing_to_score_starts_nothing(fake: FakeVllm) -> None:
    assert judge().score([]) == []
    assert not fake.engines


def test_unparsable_replies_are_asked_again_together(fake: FakeVllm) -> None:
    fake.reply = lambda prompt: "nice" if "odd" in prompt and "not readable" not in prompt else "0.25"
    backend = judge()
    assert backend.score(requests("a", "odd", "very odd")) == [0.25] * 3
    assert [len(call) for call in fake.calls] == [3, 2]
    assert [values["seed"] for values in fake.sampling] == [42, 43]
    assert backend.stats() | {"seconds": 0} == {
        **{"scored": 3, "failed": 0, "requests": 5, "cache_hits": 0, "retries": 2, "unparsable": 2, "seconds": 0},
        **{"prompt_tokens": 0, "reply_tokens": 0},  # an engine of this machine has no server that counts them
    }


@pytest.mark.parametrize(("on_error", "substitute"), [("zero", 0.0), ("skip", None)])
def test_unparsable_to_the_end_follows_on_error(
    on_error: str, substitute: float | None, fake: FakeVllm, caplog: pytest.LogCaptureFixture
) -> None:
    fake.reply = lambda prompt: "nice" if "odd" in prompt else "1"
    with caplog.at_level(logging.WARNING):
        assert judge(on_error=on_error).score(requests("a", "odd", "b")) == [1.0, substitute, 1.0]
    (record,) = caplog.records
    assert "1 of 3 answers could not be scored" in record.getMessage()
    with pytest.raises(RewardError, match=r"1 of 3 answers: sample '1': the judge's reply is not a score: 'nice'"):
        judge().score(requests("a", "odd", "b"))


def test_a_reply_that_was_cut_off_is_no_score(fake: FakeVllm) -> None:
    fake.finish_reason = "length"
    fake.reply = lambda prompt: "0.9"
    with pytest.raises(RewardError, match="not a score: cut off"):
        judge().score(requests("a"))


def test_a_prompt_that_does_not_fit_fails_alone_and_is_never_cut(fake: FakeVllm) -> None:
    fake.max_model_len = 400
    assert judge(on_error="skip").score(requests("a", "long " * 300)) == [0.5, None]
    assert [len(call) for call in fake.calls] == [1]
    with pytest.raises(RewardError, match=r"sample '0': the judge's prompt has \d+ tokens and 400 fit .*max_model_len"):
        judge().score(requests("long " * 300))


def test_control_tokens_of_the_judge_are_broken_up(fake: FakeVllm) -> None:
    judge().score(requests("a<stop>b[TURN]c word  d\n"))
    assert "a< stop>b[ TURN]c word  d\n" in fake.calls[0][0]


def test_a_judge_without_a_chat_template_gets_the_bare_prompt(fake: FakeVllm, caplog: pytest.LogCaptureFixture) -> None:
    judge().score(requests("a"))
    fake.tokenizer.chat_template = None
    with caplog.at_level(logging.WARNING):
        judge().score(requests("a"))
    assert fake.templates == [None, PLAIN_CHAT_TEMPLATE]
    assert "'judge' has no chat template" in caplog.text


def test_a_prompt_that_cannot_be_rendered_is_a_failure_of_its_answer(fake: FakeVllm) -> None:
    assert judge(judge_prompt="{{ metadata.rubric }} {{ answer }}", on_error="skip").score(requests("a")) == [None]
    assert not fake.calls


def test_an_engine_that_does_not_start_is_a_clear_error(fake: FakeVllm) -> None:
    fake.fails = True
    with pytest.raises(RewardError, match=r"'judge' did not start: ValueError: No available.*\n.*lower gpu_mem"):
        judge().score(requests("a"))


def test_an_engine_that_fails_is_a_clear_error(fake: FakeVllm) -> None:

    def broken(prompt: str) -> str:
        raise KeyError(prompt)

    fake.reply = broken
    with pytest.raises(RewardError, match="vLLM failed on 1 prompts: KeyError"):
        judge(on_error="zero").score(requests("a"))


def test_a_missing_package_names_the_extra_and_the_cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RewardError, match=r'pip install "dataflex-sdk\[vllm\]".*CPU build: https://docs.vllm.ai'):
        judge().check()
    with pytest.raises(RewardError, match="needs vLLM"):
        judge().score(requests("a"))


def test_wrong_parameters_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        LocalVllmReward.from_params({"vllm_top_p": 2, "vllm_gpu_memory": 0.5, "vllm_dtype": "int8"})
    assert len(caught.value.problems) == 4


class TestContract(RewardContract):
    """The tests that authors of reward backends run on theirs."""

    @pytest.fixture(autouse=True)
    def _fake(self, fake: FakeVllm) -> None:
        fake.reply = lambda prompt: (
            "I cannot say." if "speechless" in prompt else f'{{"score": {len(prompt) % 11 / 10}}}'
        )

    def make(self, **params: Any) -> LocalVllmReward:
        return judge(**params)

    def unscorable(self) -> RewardRequest:
        return RewardRequest("mute", ({"role": "user", "content": "?"},), "leave the judge speechless")
