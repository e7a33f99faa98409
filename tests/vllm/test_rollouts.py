"""Real vLLM draws the answers of a model that is being trained."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from dataflex.models.model import add_lora, load_model, load_tokenizer
from dataflex.rollouts import Prompt, Sampling, sample_answers
from dataflex.rollouts.comparison import answer_log_probs
from dataflex.rollouts.vllm import VllmRolloutConfig, VllmSampler
from dataflex.testing import tiny_context, tiny_dataset
from helpers.runs import tiny_nice

# vLLM's own warnings are no errors of ours.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

COUNT = 800
TEMPERATURE = 0.9


@pytest.fixture(scope="module")
def parts(model_path):
    """Tokenizer, LoRA model and a sampler whose engine all tests of this module share."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = add_lora(load_model(model_path), rank=8, alpha=16)
    sampler = VllmSampler(VllmRolloutConfig(enforce_eager=True, kv_cache_gib=1.0))
    sampler.check(model)
    yield load_tokenizer(model_path), model, sampler
    sampler.close()


def draw(parts, folder, prompts, *, step=0, tokens=1, answers=COUNT):
    tokenizer, model, sampler = parts
    return sampler.sample_answers(
        model,
        tokenizer,
        prompts,
        Sampling(TEMPERATURE, tokens),
        answers_per_prompt=answers,
        stop_token_ids={int(tokenizer.eos_token_id)},
        seed=3,
        step=step,
        autocast=nullcontext,
        folder=folder,
    )


@torch.no_grad()
def next_token(model, prompt):
    """The model's own distribution of the next token: (vocabulary,) float64."""
    model.eval()
    logits = model(torch.tensor([prompt.token_ids])).logits[0, -1]
    return torch.softmax(logits.double() / TEMPERATURE, dim=0).numpy()


def misfit(rollouts, expected):
    """p-value of Pearson's chi-square test of first tokens against a distribution; rare tokens share a bin."""
    counts = np.bincount([rollout.token_ids[0] for rollout in rollouts], minlength=len(expected))
    common = np.flatnonzero(expected * len(rollouts) >= 8)
    observed = np.append(counts[common], counts.sum() - counts[common].sum())
    wanted = np.append(expected[common], 1 - expected[common].sum()) * len(rollouts)
    return float(chi2.sf((np.square(observed - wanted) / wanted).sum(), len(common)))


def train(model, prompt, token, steps=4):
    """AdamW on the loss of one answer of one token."""
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=2e-3)
    for _ in range(steps):
        logits = model(torch.tensor([prompt.token_ids])).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor([token])).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_draws_follow_the_policy_before_and_after_training_steps(parts, tmp_path):
    tokenizer, model, _ = parts
    prompt = Prompt("a", tokenizer("My favourite colour is")["input_ids"])
    before = next_token(model, prompt)
    first = draw(parts, tmp_path, [prompt])
    by_transformers = sample_answers(
        model,
        tokenizer,
        [prompt],
        Sampling(TEMPERATURE, 1),
        answers_per_prompt=COUNT,
        stop_token_ids={int(tokenizer.eos_token_id)},
        seed=3,
        step=0,
        batch_size=200,
        autocast=nullcontext,
        show_progress=False,
    )
    train(model, prompt, tokenizer(" green")["input_ids"][0])
    after = next_token(model, prompt)
    second = draw(parts, tmp_path, [prompt], step=4)
    distance = np.abs(after - before).sum() / 2
    fits = {
        "vllm, before": misfit(first, before),
        "hf, before": misfit(by_transformers, before),
        "vllm, after": misfit(second, after),
        "vllm, after, against before": misfit(second, before),
    }
    print(f"\ntotal variation by training: {distance:.3f}; p-values: {fits}")
    assert distance > 0.2
    assert min(fits["vllm, before"], fits["hf, before"], fits["vllm, after"]) > 1e-4
    assert fits["vllm, after, against before"] < 1e-12
    for rollouts, expected in ((first, before), (second, after)):
        recorded = [rollout.log_probs[0] for rollout in rollouts]
        own = np.log(expected[[rollout.token_ids[0] for rollout in rollouts]])
        assert np.abs(recorded - own).max() < 1e-3


def test_log_probs_of_long_answers_are_the_models_own(parts, tmp_path):
    tokenizer, model, _ = parts
    prompts = []
    for text in ("What is the capital of France?", "Name a colour."):
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        prompts.append(Prompt(text, list(ids)))
    rollouts = draw(parts, tmp_path, prompts, tokens=24, answers=4)
    assert draw(parts, tmp_path, prompts, tokens=24, answers=4) == rollouts
    differences = []
    with torch.no_grad():
        for rollout in rollouts:
            prompt = next(prompt for prompt in prompts if prompt.sample_id == rollout.sample_id)
            own = answer_log_probs(model, prompt.token_ids, rollout.token_ids, TEMPERATURE)
            differences += np.abs(np.subtract(own, rollout.log_probs)).tolist()
            assert rollout.finished == (rollout.token_ids[-1] == tokenizer.eos_token_id)
    print(f"\nlargest difference of {len(differences)} log-probabilities: {max(differences):.2e}")
    assert max(differences) < 1e-3
    assert not list(tmp_path.iterdir())


def test_nice_selects_with_answers_from_vllm(parts, tmp_path):
    from dataflex.data import ChatTemplate
    from dataflex.testing import stepped_optimizer

    tokenizer, model, sampler = parts
    sampler.close()  # one engine at a time
    context = tiny_context(
        tmp_path,
        model=model,
        tokenizer=tokenizer,
        template=ChatTemplate.load("chatml", tokenizer),
        train_dataset=tiny_dataset(4, seed=0, tokenizer=tokenizer),
        eval_dataset=tiny_dataset(2, seed=100, tokenizer=tokenizer),
        num_samples=2,
        optimizer=stepped_optimizer(model, 2),
    )
    selector = tiny_nice(
        rollout_backend="vllm",
        rollout_backend_params={"enforce_eager": True, "kv_cache_gib": 1.0, "release": True},
        max_prompt_length=64,
        max_new_tokens=12,
    )
    selector.check(context)
    selection = selector.select(context)
    selector.close()
    assert np.isfinite(selection.scores).all()
    assert len(set(selection.indices.tolist())) == 2
    assert selection.report["rewards"]["scored"] == 6
