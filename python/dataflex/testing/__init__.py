"""For authors of plugins: contract tests, and stand-ins that need no network.

Components come in, failed clauses of their contract go out.
May import ``selectors``, ``mixers``, ``weighters``, ``rewards`` and what they may; nothing of dataflex imports it.

:class:`SelectorContract`, :class:`MixerContract`, :class:`WeighterContract` and :class:`RewardContract` are test
classes to inherit from; pytest collects them in your test module, and dataflex does not import it. The rest is what
their tests run on: a tiny model, its tokenizer, data, and the context that the trainer would pass.
"""

from __future__ import annotations

from dataflex.testing.context import stepped_optimizer, tiny_context, tiny_global_batch, tiny_mixture_context
from dataflex.testing.mixer_contract import MixerContract
from dataflex.testing.project import tiny_project
from dataflex.testing.ranks import run_ranks
from dataflex.testing.reward_contract import RewardContract
from dataflex.testing.rewards import EchoReward
from dataflex.testing.selector_contract import SelectorContract
from dataflex.testing.tiny import tiny_dataset, tiny_lora, tiny_model, tiny_samples, tiny_tokenizer
from dataflex.testing.weighter_contract import WeighterContract

__all__ = [
    "EchoReward",
    "MixerContract",
    "RewardContract",
    "SelectorContract",
    "WeighterContract",
    "run_ranks",
    "stepped_optimizer",
    "tiny_context",
    "tiny_dataset",
    "tiny_global_batch",
    "tiny_lora",
    "tiny_mixture_context",
    "tiny_model",
    "tiny_project",
    "tiny_samples",
    "tiny_tokenizer",
]
