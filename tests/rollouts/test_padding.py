"""Answers of models that read the padding of shorter prompts, and of models whose steps are not their one pass."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, RecurrentGemmaConfig, RwkvConfig

from dataflex.errors import RolloutError
from dataflex.rollouts import Prompt, Rollout, Sampling, sample_answers
from dataflex.rollouts.comparison import answer_log_probs, compare_answers
from dataflex.testing import tiny_lora, tiny_model, tiny_tokenizer

VOCABULARY = len(tiny_tokenizer())
RECURRENT = {
    "rwkv": RwkvConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, intermediate_size=48),
    "recurrent_gemma": RecurrentGemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        lru_width=32,
    ),
}
PROMPTS = [Prompt(str(n), list(range(5, 5 + n))) for n in (4, 9, 4, 12, 3, 9)]


def recurrent(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(RECURRENT[kind])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.float().eval()


def drawn(model, prompts=PROMPTS, **changes):
    settings = {
        "answers_per_prompt": 2,
        "stop_token_ids": {1},
        "seed": 5,
        "step": 10,
        "batch_size": 8,
        "autocast": nullcontext,
        "show_progress": False,
    }
    sampling = changes.pop("sampling", Sampling(0.8, 6))
    return sample_answers(model, tiny_tokenizer(), prompts, sampling, **(settings | changes))


def batches(model):
    """Widths and rows of the forward passes over prompts, as they come."""
    shapes = []
    model.register_forward_pre_hook(
        lambda module, inputs, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "remark"),
    [
        ("recurrent_gemma", "reads the padding of shorter prompts: only prompts of equal length share a batch"),
        ("rwkv", "mixes up the rows of a batch when it answers: answers are drawn one at a time"),
    ],
)
def test_answers_share_batches_as_far_as_the_model_allows(kind, remark, precision, caplog):
    model = recurrent(kind).to(precision)
    answers = drawn(model)
    assert caplog.text.count(remark) == 1
    alone = [answer for prompt in PROMPTS for number in range(2) for answer in drawn(model, [prompt], batch_size=1)
             if answer.answer == number]  # fmt: skip
    for number, (found, expected) in enumerate(zip(answers, alone, strict=True)):
        prompt = PROMPTS[number // 2].token_ids
        with torch.no_grad():
            own = answer_log_probs(model, prompt, found.token_ids, temperature=0.8)
        differences = [abs(a - b) for a, b in zip(own, found.log_probs, strict=True)]
        assert sum(differences) / len(own) < (1e-4 if precision == torch.float32 else 0.1)
        if precision == torch.float32:
            assert found.token_ids == expected.token_ids


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_greedy_evaluation_is_drawn_so_too(kind, caplog):
    model = recurrent(kind)
    greedy = Sampling(1.0, 6, top_k=1)
    answers = drawn(model, sampling=greedy, answers_per_prompt=1)
    alone = [answer for prompt in PROMPTS for answer in drawn(model, [prompt], sampling=greedy, answers_per_prompt=1)]
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]
    assert ("only prompts of equal length" in caplog.text) == (kind == "recurrent_gemma")


def test_other_models_draw_prompts_of_different_length_together(caplog):
    model = tiny_model()
    shapes = batches(model)
    drawn(model)
    assert not caplog.records
    assert (8, 9) in shapes  # eight answers to prompts of 3 to 9 tokens
    widths = [width for rows, width in shapes if width > 1 and rows > 2]
    assert all(first <= second for first, second in pairwise(widths))


def test_answers_of_another_distribution_are_refused(monkeypatch):
    """A model whose steps forget: its cache has no influence on what comes next."""
    model = tiny_lora(tiny_model())
    base = model.get_base_model()
    real = base.prepare_inputs_for_generation

    def forgetful(*args, **kwargs):
        return real(*args, **kwargs) | {"past_key_values": None}

    monkeypatch.setattr(base, "prepare_inputs_for_generation", forgetful)
    with pytest.raises(RolloutError, match=r"answers of generate are not those of the model in training"):
        drawn(model)


def test_answers_that_are_not_finite_are_refused():
    model = tiny_model()
    answers = [Rollout("a", 0, [5, 6], [float("nan"), -1.0], False, "")]
    with pytest.raises(RolloutError, match="differ by nan"):
        compare_answers(
            model, [Prompt("a", [5])], answers, Sampling(1.0, 2), nullcontext, drawn_by="a test", hint="none"
        )
