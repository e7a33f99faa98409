"""What gradients depend on beside their data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from dataflex.types import Autocast
from dataflex.utils.distributed import Ranks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class GradientContext(Protocol):
    """What gradients depend on beside their data; a :class:`dataflex.SelectionContext` is one."""

    @property
    def model(self) -> nn.Module:
        """The model in its current state, adapters included, unwrapped."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the data."""

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer in its current state, or None."""

    @property
    def autocast(self) -> Autocast:
        """The trainer's forward context."""

    @property
    def ranks(self) -> Ranks:
        """The processes that share the work."""
