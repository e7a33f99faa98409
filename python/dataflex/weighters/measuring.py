"""What weighters look at: losses and hidden states of single samples, the same for any micro-batch and number of ranks.

Rows of one length class and of neighbouring lengths share a forward pass; ranks share the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from dataflex.data.collate import Batch, collate
from dataflex.data.dataset import Example
from dataflex.models.hidden import pooled_states
from dataflex.models.losses import mean_losses
from dataflex.models.model import undisturbed
from dataflex.types import Autocast
from dataflex.utils.distributed import Ranks


class Passes(Protocol):
    """What a forward pass needs; a :class:`dataflex.weighters.base.GlobalBatch` is one."""

    @property
    def model(self) -> nn.Module:
        """The model before the step, unwrapped."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the data."""

    @property
    def autocast(self) -> Autocast:
        """The trainer's forward context."""

    @property
    def micro_batch(self) -> int:
        """Rows of one pass."""

    @property
    def ranks(self) -> Ranks:
        """The processes that share the passes."""


def row_losses(passes: Passes, examples: Sequence[Example]) -> NDArray[np.float64]:
    """Mean token cross-entropy ``(B,)`` of each sample alone, in nats, without dropout."""
    return _computed(passes, examples, lambda batch: mean_losses(passes.model, batch)[:, None])[:, 0]


def row_states(passes: Passes, examples: Sequence[Example]) -> NDArray[np.float64]:
    """Pooled last hidden states ``(B, h)`` of each sample (:func:`dataflex.models.hidden.pooled_states`)."""
    return _computed(passes, examples, lambda batch: pooled_states(passes.model, batch))


def _computed(passes: Passes, examples: Sequence[Example], compute: Callable[[Batch], Tensor]) -> NDArray[np.float64]:
    order = sorted(range(len(examples)), key=lambda row: len(examples[row].input_ids))
    batches = [order[start : start + passes.micro_batch] for start in range(0, len(order), passes.micro_batch)]
    device = next(passes.model.parameters()).device

    def share() -> list[Tensor]:
        parts: list[Tensor] = []
        with undisturbed(passes.model), torch.no_grad(), passes.autocast():
            for rows in passes.ranks.share(batches):
                batch = collate([examples[row] for row in rows], int(passes.tokenizer.pad_token_id)).to(device)
                parts.append(compute(batch).double().cpu())
        return parts

    parts = passes.ranks.together(share)
    found: dict[int, Any] = {}
    values = torch.cat(parts) if parts else torch.zeros(0, 0, dtype=torch.float64)
    for rank, gathered in enumerate(passes.ranks.gather_tensors(values)):
        rows = [row for part in batches[rank :: passes.ranks.count] for row in part]
        found.update(zip(rows, gathered.numpy(), strict=True))
    return np.stack([found[row] for row in range(len(examples))])
