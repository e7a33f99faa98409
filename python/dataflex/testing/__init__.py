"""For authors of plugins: contract tests, and stand-ins that need no network.

Components come in, failed clauses of their contract go out.
May import ``selectors``, ``rewards`` and what they may; nothing of dataflex imports it.

:class:`SelectorContract` and :class:`RewardContract` are test classes to inherit from; pytest collects them in your
test module, and dataflex does not import it. The rest is what their tests run on: a tiny model, its tokenizer, data,
and the context that the trainer would pass.
"""

from __future__ import annotations

from dataflex.testing.context import stepped_optimizer, tiny_context
from dataflex.testing.project import tiny_project
from dataflex.testing.ranks import run_ranks
from dataflex.testing.reward_contract import RewardContract
from dataflex.testing.rewards import EchoReward
from dataflex.testing.selector_contract import SelectorContract
from dataflex.testing.tiny import tiny_dataset, tiny_lora, tiny_model, tiny_samples, tiny_tokenizer

__all__ = [
    "EchoReward",
    "RewardContract",
    "SelectorContract",
    "run_ranks",
    "stepped_optimizer",
    "tiny_context",
    "tiny_dataset",
    "tiny_lora",
    "tiny_model",
    "tiny_project",
    "tiny_samples",
    "tiny_tokenizer",
]
