"""Reward backends: each one scores answers of the model in training."""

from dataflex.rewards.resolve import resolve_reward

__all__ = ["resolve_reward"]
