"""NICE's targets: advantages become weighted prompts, and these policy gradients, by halves of their answers.

The halves cost what the whole costs (the same answers, a projected row more a prompt), add up to the prompt's feature,
and tell how far its answers agree (:mod:`dataflex.gradients.reliability`). With a baseline they would not: the
advantages of a prompt add up to zero, so whatever its answers have in common counts with one sign in one half and with
the other sign in the other half, and two halves of a perfect direction may point apart. There, prompts stay whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dataflex.gradients.advantages import Baseline, advantages, unit_scale
from dataflex.gradients.policy import WeightedPrompt, halves
from dataflex.rollouts import Rollout


def weighted(
    prompt: WeightedPrompt, answers: Sequence[Rollout], baseline: Baseline, *, length_normalize: bool
) -> WeightedPrompt | None:
    """A prompt with answers and their weights; None where every advantage is zero.

    Args:
        prompt: The prompt, without answers.
        answers: Its answers, those without a reward among them, and the reference if it counts as one.
        baseline: From rewards to advantages.
        length_normalize: Divide an answer's weight by its length in tokens.
    """
    scored = [answer for answer in answers if answer.reward is not None]
    rewards = unit_scale([float(answer.reward or 0.0) for answer in scored])
    weights = unit_scale(advantages(rewards, baseline))
    if not any(weights):
        return None
    if length_normalize:
        weights = [weight / len(answer.token_ids) for weight, answer in zip(weights, scored, strict=True)]
    return replace(prompt, answers=[answer.token_ids for answer in scored], weights=weights)


@dataclass(frozen=True)
class Halves:
    """Prompts whose gradients are made by halves of their answers.

    Attributes:
        prompts: The halves, prompt after prompt.
        factors: Per prompt the factors of its halves.
    """

    prompts: list[WeightedPrompt]
    factors: list[list[float]]

    @classmethod
    def of(cls, prompts: Sequence[WeightedPrompt], baseline: Baseline) -> Halves:
        """Split the answers of every prompt, where their advantages do not depend on each other."""
        parts = [halves(prompt) if baseline == "none" else [(prompt, 1.0)] for prompt in prompts]
        return cls([half for part in parts for half, _ in part], [[factor for _, factor in part] for part in parts])
