"""Rewards: the contract of a backend, metrics, judges over HTTP or in vLLM, classifiers, and how answers get scored.

Answers with their prompts come in, one finite number an answer (or None) goes out.
May import ``rollouts``, ``models``, ``config``, ``plugins`` and below.
"""

from dataflex.rewards.resolve import resolve_reward

__all__ = ["resolve_reward"]
