"""Padded batches of tokenised samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import DataError

if TYPE_CHECKING:
    from dataflex.data.dataset import Example


@dataclass(frozen=True, slots=True)
class Batch:
    """A padded batch of b sequences of t tokens, int64.

    Attributes:
        input_ids: ``(b, t)`` token ids, padded on the right.
        attention_mask: ``(b, t)`` 1 on tokens, 0 on padding; made from lengths, so that a padding id that is also the
            end token does no harm.
        labels: ``(b, t)`` token ids where the loss is taken, else -100; not shifted (the model shifts).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on ``device``."""
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


def collate(examples: Sequence[Example], pad_token_id: int, *, pad_to_multiple_of: int = 1) -> Batch:
    """Pad ``examples`` on the right to the longest of them.

    Args:
        examples: b tokenised samples.
        pad_token_id: Id that fills ``input_ids``; any valid id does, masked positions are never attended to.
        pad_to_multiple_of: t is rounded up to a multiple of this.

    Raises:
        DataError: No examples.
    """
    if not examples:
        raise DataError("an empty batch cannot be collated")
    longest = max(len(example.input_ids) for example in examples)
    width = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    shape = (len(examples), width)  # (b, t)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.int64)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids, dtype=torch.int64)
        attention_mask[row, :length] = 1
        labels[row, :length] = torch.tensor(example.labels, dtype=torch.int64)
    return Batch(input_ids, attention_mask, labels)
