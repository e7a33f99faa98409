"""Rewards that are given, and what a round of NICE leaves behind."""

from __future__ import annotations

from dataclasses import replace

from dataflex.data.dataset import TokenizedDataset
from dataflex.rollouts.file import parse_rollouts
from dataflex.testing import EchoReward


class Fixed(EchoReward):
    """Rewards that are given in advance; remembers the requests."""

    def __init__(self, rewards):
        super().__init__()
        self.rewards = rewards
        self.requests = []

    def score(self, requests):
        self.requests = list(requests)
        return [self.rewards[number % len(self.rewards)] for number in range(len(requests))]


def stored_rollouts(output_dir):
    return parse_rollouts((output_dir / "rollouts" / "step-2.jsonl").read_text(encoding="utf-8"))


def rewritten(dataset, **changes):
    """The same tokens, with other samples."""
    return TokenizedDataset(replace(example, sample=replace(example.sample, **changes)) for example in dataset)
