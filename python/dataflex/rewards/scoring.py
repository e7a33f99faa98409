"""Sampled answers get their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from dataflex.rewards.base import RewardBackend, checked_rewards
from dataflex.rollouts.answers import Rollout, by_row
from dataflex.types import RewardRequest, Sample
from dataflex.utils.distributed import Ranks


def score_answers(
    reward: RewardBackend[Any], samples: Sequence[Sample], answers: Sequence[Rollout], ranks: Ranks
) -> list[Rollout]:
    """The answers with their rewards, asked for by the main process; one that could not be scored keeps None.

    Args:
        reward: The backend.
        samples: The q rows of the evaluation set; ids may repeat.
        answers: M a row, ordered by row, then by answer number.
        ranks: The processes of the run.

    Raises:
        RewardError: The backend fails, or returns something else than one finite number or None an answer.
    """
    rows = by_row(answers, [sample.id for sample in samples])
    requests = [
        RewardRequest(sample.id, sample.prompt, answer.text, sample.reference, sample.metadata)
        for sample, own in zip(samples, rows, strict=True)
        for answer in own
    ]

    def score() -> list[float | None]:
        return checked_rewards(reward.score(requests), requests, reward.name)

    return [replace(answer, reward=value) for answer, value in zip(answers, ranks.on_main(score), strict=True)]


def reward_facts(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Counts, mean and range of the rewards of a round."""
    scored = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    return {
        "answers": len(rollouts),
        "scored": len(scored),
        "missing": len(rollouts) - len(scored),
        "mean": float(mean(scored)) if scored else None,
        "min": min(scored, default=None),
        "max": max(scored, default=None),
        "finished": sum(rollout.finished for rollout in rollouts),
    }
