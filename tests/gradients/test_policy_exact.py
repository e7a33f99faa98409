"""The Monte Carlo policy gradient against the exact one, with a vocabulary small enough to list every answer."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from dataflex.gradients.advantages import advantages
from dataflex.gradients.plain import flat_gradient, policy_gradient, policy_loss
from dataflex.models.model import trainable_parameters
from dataflex.rollouts import Prompt, Sampling, sample_answers
from dataflex.testing import tiny_model, tiny_tokenizer

VOCABULARY, STOP, LONGEST = 5, 4, 3
PROMPT = [0, 2, 1]
PROMPTS, ANSWERS = 500, 4


def every_answer(prefix=()):
    """All token sequences that end with the stop token, or are cut at ``LONGEST``."""
    for token in range(VOCABULARY):
        answer = (*prefix, token)
        if token == STOP or len(answer) == LONGEST:
            yield list(answer)
        else:
            yield from every_answer(answer)


def reward(answer):
    return 1.0 if 2 in answer else 0.25 * (answer[-1] == STOP)


def exact_gradient(model, temperature):
    """grad of -E[reward], by summing over all answers: the gradient of the expectation itself, not of log-probs."""
    answers = list(every_answer())
    log_probs = [-policy_loss(model, PROMPT, [answer], [1.0], temperature) for answer in answers]
    probabilities = torch.stack(log_probs).exp()
    assert float(probabilities.sum().detach()) == pytest.approx(1.0, abs=1e-12)
    rewards = torch.tensor([reward(answer) for answer in answers], dtype=torch.float64)
    loss = -(probabilities * rewards).sum()
    return flat_gradient(model, loss, [parameter for _, parameter in trainable_parameters(model)])


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_policy_gradient_is_unbiased(temperature, baseline):
    model = tiny_model(vocab_size=VOCABULARY, num_hidden_layers=1, hidden_size=8, intermediate_size=8).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("mlp" in name or "lm_head" in name)
    rollouts = sample_answers(
        model,
        tiny_tokenizer(),
        [Prompt(str(number), PROMPT) for number in range(PROMPTS)],
        Sampling(temperature, LONGEST),
        answers_per_prompt=ANSWERS,
        stop_token_ids={STOP},
        seed=7,
        step=1,
        batch_size=500,
        autocast=nullcontext,
        show_progress=False,
    )
    gradients = []
    for start in range(0, len(rollouts), ANSWERS):
        answers = [rollout.token_ids for rollout in rollouts[start : start + ANSWERS]]
        weights = advantages([reward(answer) for answer in answers], baseline)
        gradient = policy_gradient(model, PROMPT, answers, weights, temperature=temperature, autocast=nullcontext)
        gradients.append(gradient)
    stacked = torch.stack(gradients)
    exact = exact_gradient(model, temperature)
    torch.manual_seed(0)
    directions = torch.cat([exact[None] / exact.norm(), torch.randn(20, len(exact), dtype=torch.float64)])
    estimates = stacked @ directions.T
    standard_errors = estimates.std(dim=0) / PROMPTS**0.5
    deviations = (estimates.mean(dim=0) - directions @ exact) / standard_errors
    assert abs(float(deviations[0])) < 3.0
    assert float(deviations.abs().max()) < 4.0
    assert float(deviations.square().mean().sqrt()) < 1.6


def test_leave_one_out_lowers_the_variance():
    torch.manual_seed(0)
    rewards = torch.distributions.Bernoulli(0.8).sample((2000, 4)).tolist()
    plain = torch.tensor([advantages(row, "none") for row in rewards])
    centred = torch.tensor([advantages(row, "leave_one_out") for row in rewards])
    assert float((centred**2).mean()) < 0.5 * float((plain**2).mean())
