"""The sampler against a fake ``vllm`` that really draws, from the base model and adapter on disk; ``tests/vllm`` runs
real engines."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from dataflex.errors import RolloutError
from dataflex.rollouts import Prompt, Sampling
from dataflex.rollouts.comparison import answer_log_probs
from dataflex.rollouts.vllm import VllmRolloutConfig, VllmSampler
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer

PROMPTS = [Prompt("a", [5, 6, 7]), Prompt("b", [9, 10, 11, 12, 13, 14])]


@dataclass
class FakeVllm:
    """What the fake was asked for."""

    engines: list[dict[str, Any]] = field(default_factory=list)
    loras: list[Any] = field(default_factory=list)
    params: list[dict[str, Any]] = field(default_factory=list)
    stops: int = 0


@pytest.fixture
def fake(monkeypatch):
    state = FakeVllm()

    class SamplingParams(SimpleNamespace):
        pass

    class LLM:
        def __init__(self, model, **options):
            self.path = model
            state.engines.append({"model": model, **options})
            core = SimpleNamespace(shutdown=lambda: setattr(state, "stops", state.stops + 1))
            self.llm_engine = SimpleNamespace(engine_core=core)

        @torch.no_grad()
        def generate(self, prompts, params, use_tqdm, lora_request):
            state.loras.append(lora_request)
            state.params += [vars(given) for given in params]
            base = AutoModelForCausalLM.from_pretrained(self.path)
            policy = PeftModel.from_pretrained(base, lora_request.lora_path).eval()
            return [self.draw(policy, p["prompt_token_ids"], given) for p, given in zip(prompts, params, strict=True)]

        def draw(self, policy, prompt, given):
            generator = torch.Generator().manual_seed(given.seed)
            ids, steps = list(prompt), []
            for _ in range(given.max_tokens):
                logits = policy(torch.tensor([ids])).logits[0, -1]
                log_probs = torch.log_softmax(logits / given.temperature, dim=0)
                token = int(torch.multinomial(log_probs.exp(), 1, generator=generator))
                steps.append({token: SimpleNamespace(logprob=float(log_probs[token]))})
                ids.append(token)
                if token in given.stop_token_ids:
                    break
            completion = SimpleNamespace(token_ids=ids[len(prompt) :], logprobs=steps)
            return SimpleNamespace(outputs=[completion])

    module, platforms, request = ModuleType("vllm"), ModuleType("vllm.platforms"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    platforms.current_platform = SimpleNamespace(is_cpu=lambda: False)
    request.LoRARequest = lambda name, number, path: SimpleNamespace(name=name, number=number, lora_path=path)
    for found in (module, platforms, ModuleType("vllm.lora"), request):
        monkeypatch.setitem(sys.modules, found.__name__, found)
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "1")
    return state


@pytest.fixture
def policy(tmp_path):
    """A LoRA model whose base lies on disk."""
    tiny_model().save_pretrained(tmp_path / "base")
    return tiny_lora(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))


def draw(sampler, model, folder, **changes):
    settings = {
        "answers_per_prompt": 3,
        "stop_token_ids": {1, 4},
        "seed": 5,
        "step": 10,
        "autocast": nullcontext,
        "folder": folder,
    }
    sampling = changes.pop("sampling", Sampling(0.8, 8))
    return sampler.sample_answers(model, tiny_tokenizer(), PROMPTS, sampling, **(settings | changes))


def test_answers_come_from_the_adapter_as_it_is_now(fake, policy, tmp_path):
    sampler = VllmSampler(VllmRolloutConfig())
    sampler.check(policy)
    first = draw(sampler, policy, tmp_path)
    assert [(answer.sample_id, answer.answer) for answer in first] == [(s, m) for s in "ab" for m in range(3)]
    assert draw(sampler, policy, tmp_path) == first
    with torch.no_grad():
        for name, value in policy.named_parameters():
            if "lora_B" in name:
                value.add_(0.5)
    for answers in (draw(sampler, policy, tmp_path), draw(sampler, policy, tmp_path, step=11)):
        assert [answer.token_ids for answer in answers] != [answer.token_ids for answer in first]
        for answer in answers:
            prompt = next(p.token_ids for p in PROMPTS if p.sample_id == answer.sample_id)
            with torch.no_grad():
                own = answer_log_probs(policy, prompt, answer.token_ids, 0.8)
            assert answer.log_probs == pytest.approx(own, abs=1e-5)
    assert len(fake.engines) == 1
    assert [request.number for request in fake.loras] == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_the_request_asks_for_the_policys_distribution(fake, policy, tmp_path):
    draw(VllmSampler(VllmRolloutConfig(gpu_memory_utilization=0.3)), policy, tmp_path)
    (engine,) = fake.engines
    assert engine == {
        **{"model": str(tmp_path / "base"), "trust_remote_code": False, "tensor_parallel_size": 1, "dtype": "float32"},
        **{"gpu_memory_utilization": 0.3, "enforce_eager": False, "max_model_len": 14, "generation_config": "vllm"},
        **{
            "logprobs_mode": "processed_logprobs",
            "enable_lora": True,
            "max_loras": 1,
            "max_lora_rank": 8,
            "load_format": "safetensors",
        },
    }
    seeds = {params.pop("seed") for params in fake.params}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert fake.params[0] == {
        **{"temperature": 0.8, "top_p": 1.0, "top_k": 0, "max_tokens": 8, "stop_token_ids": [1, 4]},
        **{"ignore_eos": True, "logprobs": 0, "detokenize": False},
    }


def test_the_end_token_belongs_to_a_finished_answer_only(fake, policy, tmp_path):
    answers = draw(VllmSampler(VllmRolloutConfig()), policy, tmp_path, stop_token_ids=set(range(0, 384, 7)))
    assert any(answer.finished for answer in answers)
    assert all((answer.token_ids[-1] % 7 == 0) == answer.finished for answer in answers)
    assert all(len(answer.token_ids) == 8 for answer in answers if not answer.finished)


def test_another_base_model_is_noticed_before_its_gradient_is_taken(fake, policy, tmp_path):
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    sampler = VllmSampler(VllmRolloutConfig(model_name_or_path=str(tmp_path / "other")))
    with pytest.raises(RolloutError, match=r"not those of the model in training: .* differ by \d") as caught:
        draw(sampler, policy, tmp_path)
    assert "other' the base model" in str(caught.value)


def test_the_engine_is_freed(fake, policy, tmp_path):
    kept, released = VllmSampler(VllmRolloutConfig()), VllmSampler(VllmRolloutConfig(release=True))
    draw(kept, policy, tmp_path)
    assert fake.stops == 0
    kept.close()
    kept.close()
    assert fake.stops == 1
    draw(released, policy, tmp_path)
    assert fake.stops == 2


def test_an_engine_that_fails_is_a_clear_error_and_leaves_no_adapter(fake, policy, tmp_path):
    sampler = VllmSampler(VllmRolloutConfig())
    draw(sampler, policy, tmp_path)
    sampler._engine.generate = lambda *args, **kwargs: {}["lost"]
    with pytest.raises(RolloutError, match="vLLM failed on 6 answers: KeyError"):
        draw(sampler, policy, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_what_vllm_cannot_take_over_is_found_before_training(fake, policy, tmp_path):
    sampler = VllmSampler(VllmRolloutConfig())
    with pytest.raises(RolloutError, match="one LoRA adapter"):
        sampler.check(tiny_model())
    with pytest.raises(RolloutError, match="does not say where it came from"):
        sampler.check(tiny_lora(tiny_model()))
    with pytest.raises(RolloutError, match="DoRA"):
        sampler.check(get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], use_dora=True)))
    policy.get_base_model().lm_head.weight.requires_grad_(True)
    with pytest.raises(RolloutError, match=r"not LoRA's \(.*lm_head"):
        sampler.check(policy)


def test_more_tokens_than_positions_is_an_error(fake, policy, tmp_path):
    with pytest.raises(RolloutError, match="may have 606 tokens, and the model has 512 positions"):
        draw(VllmSampler(VllmRolloutConfig()), policy, tmp_path, sampling=Sampling(1.0, 600))


def test_a_missing_package_names_the_extra(policy, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(RolloutError, match=r'rollout_backend: vllm needs vLLM.*\n.*pip install "dataflex-sdk\[vllm\]"'):
        VllmSampler(VllmRolloutConfig()).check(policy)
