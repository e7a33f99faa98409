"""Whether answers are as likely as the model in training says, whatever drew them.

The gradient of an answer is taken in one pass over prompt and answer, of the model in training. Answers that come from
another program, or token by token from another code path of the model, could be those of another distribution without
a sign: a few of each round are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import torch
from torch import nn

from dataflex.errors import RolloutError
from dataflex.models.losses import token_log_probs, trailing_logits
from dataflex.models.model import autocast_dtype, undisturbed
from dataflex.rollouts.answers import Prompt, Rollout, Sampling
from dataflex.types import Autocast

CHECKED_ANSWERS = 4
"""How many answers of a round the model in training computes again."""

LOG_PROB_TOLERANCE = {torch.float64: 0.02, torch.float32: 0.02, torch.float16: 0.1, torch.bfloat16: 0.2}
"""Largest mean difference of log-probabilities a token, by the coarsest type in the computation."""


def compare_answers(
    model: nn.Module,
    prompts: Sequence[Prompt],
    answers: Sequence[Rollout],
    sampling: Sampling,
    autocast: Autocast,
    *,
    drawn_by: str,
    hint: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Compute a few answers again in one pass each, and compare the log-probabilities of their tokens.

    Args:
        model: The model in training; left undisturbed.
        prompts: The prompt of each answer.
        answers: Answers as they were drawn.
        sampling: How; a truncated distribution is not compared: it is scaled up by what rounding at its edge decides.
        autocast: The trainer's forward context.
        drawn_by: What drew the answers, for the message.
        hint: What to do about a difference.
        dtype: Type that the answers were computed in; None: the model's own.

    Raises:
        RolloutError: They differ by more than rounding.
    """
    if sampling.top_k > 0 or sampling.top_p < 1 or not answers:
        return
    stride = max(1, len(answers) // CHECKED_ANSWERS)
    chosen = list(zip(prompts, answers, strict=True))[::stride][:CHECKED_ANSWERS]
    differences: list[float] = []
    with undisturbed(model), torch.no_grad(), autocast():
        for prompt, answer in chosen:
            horizon = len(prompt.token_ids) + sampling.max_new_tokens
            own = answer_log_probs(model, prompt.token_ids, answer.token_ids, sampling.temperature, horizon)
            differences += [abs(a - b) for a, b in zip(own, answer.log_probs, strict=True)]
    tolerance = max(LOG_PROB_TOLERANCE[used] for used in {*_dtypes(model, autocast), dtype or torch.float32})
    if not fmean(differences) <= tolerance:  # NaN is a difference, too
        raise RolloutError(
            f"the answers of {drawn_by} are not those of the model in training: log-probabilities differ by "
            f"{fmean(differences):.3g} a token on average (expected at most {tolerance:g})",
            hint=hint,
        )


def answer_log_probs(
    model: nn.Module, prompt: list[int], answer: list[int], temperature: float, horizon: int | None = None
) -> list[float]:
    """The log pi_T of each token of one answer, by the model itself in its current mode; arguments as policy_loss."""
    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt, *answer]], device=device)
    logits = trailing_logits(model, ids, torch.ones_like(ids), len(answer) + 1, horizon=horizon)[:, :-1]
    return [float(value) for value in token_log_probs(logits, ids[:, len(prompt) :], temperature)[0]]


def _dtypes(model: nn.Module, autocast: Autocast) -> set[torch.dtype]:
    """The types that forward passes compute in."""
    found = {parameter.dtype for parameter in model.parameters() if parameter.dtype in LOG_PROB_TOLERANCE}
    mixed = autocast_dtype(autocast, next(model.parameters()).device.type)
    return found if mixed is None else found | {mixed}
