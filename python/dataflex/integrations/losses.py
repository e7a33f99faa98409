"""The loss that a foreign trainer is handed, where a curriculum weighs rows or wants to know what they lose.

A trainer calls its ``compute_loss_func`` with the outputs of a forward pass and says nothing of the rows. They follow
from the order of reading: process r of R gets the r-th of every R micro-batches, so that the n-th call of a step has
the (n R + r)-th micro-batch of the step's rows. The labels that come with it are compared with those of these rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dataflex.curriculum.step import RowLosses, StepRows, StepWork
from dataflex.data.dataset import Example
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import TrainingError
from dataflex.models.losses import token_log_probs
from dataflex.utils.distributed import Ranks

HANDED_OVER = "compute_loss_func=curriculum.compute_loss_func"


class TrainerLoss:
    """Token cross-entropy as the trainer computes it, each row's part times what the row counts.

    Between two steps, and for passes without gradients, which are evaluations, it is the plain loss.
    """

    def __init__(self) -> None:
        self._step: _Step | None = None

    def begin(
        self,
        examples: Sequence[Example],
        work: StepWork | None,
        *,
        micro_batch: int,
        ranks: Ranks,
        label_smoothing: float,
    ) -> None:
        """Expect the micro-batches of a step.

        Args:
            examples: Its global batch.
            work: Gives weights; None: all rows alike.
            micro_batch: Rows of a forward pass.
            ranks: The processes of the trainer.
            label_smoothing: The trainer's own, which this loss leaves out.
        """
        batches = [range(start, start + micro_batch) for start in range(0, len(examples), micro_batch)]
        self._step = _Step(examples, work, ranks.share(batches), label_smoothing)

    def end(self, ranks: Ranks) -> tuple[bool, RowLosses | None]:
        """Whether the trainer called for the step that has ended; and the losses of its rows, where they are wanted.

        Every rank has to ask for it.
        """
        step, self._step = self._step, None
        if step is None or step.calls == 0:
            return False, None
        return True, None if step.rows is None else step.rows.gather(ranks)

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of one forward pass.

        Args:
            outputs: What the model returned, with logits ``(b, t, vocabulary)``.
            labels: ``(b, t)`` int64.
            num_items_in_batch: Label tokens of the step, which the sum is divided by; None: those of this pass.

        Raises:
            TrainingError: The rows are not those that the curriculum expects next, or the trainer is set to another
                loss than the token cross-entropy.
        """
        if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.numel() != 1:
            raise TrainingError(
                "one process trains on several devices (torch.nn.DataParallel), which divides losses otherwise",
                hint="one process a device: torchrun, or CUDA_VISIBLE_DEVICES=0",
            )
        sums = -token_log_probs(_logits(outputs)[:, :-1].float(), labels[:, 1:]).sum(dim=1)
        total = (labels[:, 1:] != IGNORE_INDEX).sum() if num_items_in_batch is None else num_items_in_batch
        if not torch.is_grad_enabled():
            return sums.sum() / total
        if self._step is None:
            raise TrainingError(
                "the curriculum's loss is called by a trainer that does not have its callback",
                hint="callbacks=[curriculum.callback]",
            )
        return self._step.loss(sums, labels) / total


class _Step:
    """The micro-batches of a step that this process has.

    Attributes:
        rows: Their losses and weights; None where nobody asks.
        calls: How many came.
    """

    def __init__(
        self, examples: Sequence[Example], work: StepWork | None, batches: Sequence[range], label_smoothing: float
    ) -> None:
        self._examples, self._batches, self._smoothing = examples, batches, label_smoothing
        tokens = [example.num_labels for example in examples]
        self.rows = None if work is None else StepRows(tokens, work)
        self.calls = 0

    def loss(self, sums: Tensor, labels: Tensor) -> Tensor:
        if self._smoothing:
            raise TrainingError(
                f"label_smoothing_factor={self._smoothing:g} would not act: with compute_loss_func the loss is the "
                "curriculum's, the plain cross-entropy",
                hint="label_smoothing_factor=0, or a component that needs no losses, without compute_loss_func",
            )
        expected = list(self._batches[self.calls]) if self.calls < len(self._batches) else []
        self.calls += 1
        if _learnt(labels.tolist()) != _learnt([self._examples[place].labels for place in expected]):
            raise TrainingError(
                f"forward pass {self.calls} of a step trains on {len(labels)} rows that are not the {len(expected)} "
                "which the curriculum chose for it",
                hint="rows of a batch have to stay apart and in their order: no padding_free, no collator that joins "
                "or shuffles them",
            )
        return sums.sum() if self.rows is None else self.rows.loss(sums, expected)


def _learnt(labels: Sequence[Sequence[int]]) -> list[list[int]]:
    """The label tokens of rows, without what separates and pads them."""
    return [[label for label in row if label != IGNORE_INDEX] for row in labels]


def _logits(outputs: Any) -> Tensor:
    """The logits of a model's outputs.

    Raises:
        TrainingError: The model has a loss of its own beside that of its tokens.
    """
    if not isinstance(outputs, Mapping):
        logits: Tensor = outputs[0]
        return logits
    if outputs.get("aux_loss") is not None:
        raise TrainingError(
            "the model adds a loss of its own (aux_loss), which a trainer with compute_loss_func leaves out",
            hint="output_router_logits=False in the model's configuration trains without it",
        )
    found: Tensor = outputs["logits"]
    return found
