"""One optimizer step on one global batch, on this process's share of it.

The loss of a step is the token cross-entropy over all label tokens of its global batch, as in transformers. Its
gradient is a sum over micro-batches and ranks; DistributedDataParallel averages over ranks, so each rank's loss is
scaled by their number. The step then does not depend on how many ranks share a global batch, up to float rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dataflex.curriculum.step import StepRows, StepWork
from dataflex.data.collate import collate
from dataflex.data.dataset import Example
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import TrainingError
from dataflex.models.losses import label_log_probs, summed_loss
from dataflex.models.model import trainable_parameters
from dataflex.training.arguments import TrainingArguments
from dataflex.utils.distributed import Ranks
from dataflex.utils.shown import listed


class Stepper:
    """Takes optimizer steps.

    Args:
        model: The unwrapped model on its device.
        optimizer: Owns its trainable parameters.
        scheduler: Learning-rate schedule.
        args: Batch size, accumulation, clipping.
        accelerator: Wraps model and optimizer.
        ranks: The processes of the run.
        pad_token_id: Fills batches.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        args: TrainingArguments,
        accelerator: Accelerator,
        ranks: Ranks,
        pad_token_id: int,
    ) -> None:
        self._parameters = [parameter for _, parameter in trainable_parameters(model)]
        self._raw = optimizer
        self._scheduler = scheduler
        self._args = args
        self._accelerator = accelerator
        self._ranks = ranks
        self._pad_token_id = pad_token_id
        self._wrapped, self._optimizer = self._prepare(model, optimizer)

    def step(self, examples: Sequence[Example], number: int, work: StepWork | None = None) -> dict[str, float]:
        """One step.

        Args:
            examples: The global batch, the same on every rank.
            number: Number of this step, for messages.
            work: Gives weights to the rows and is told their losses; None: all rows alike, and only their sum counts.

        Returns:
            Loss a token of the global batch (nats, before any weight), learning rate and gradient norm.

        Raises:
            TrainingError: The loss is not finite.
        """
        self._wrapped.train()
        tokens = [sum(label != IGNORE_INDEX for label in example.labels[1:]) for example in examples]
        rows = None if work is None else StepRows(tokens, work)
        own = self._backward(examples, sum(tokens), rows)
        found = None if rows is None else rows.gather(self._ranks)
        loss = self._ranks.sum([own])[0] if found is None else float(found.sums.sum())
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss of step {number} is {loss}; samples: {listed(example.sample.id for example in examples)}",
                hint="a smaller learning rate, bf16 in place of fp16, or a look at these samples",
            )
        values = {"loss": loss / sum(tokens), "learning_rate": float(self._scheduler.get_last_lr()[0])}
        if work is not None and found is not None:
            values |= work.done(found)
        norm = self._step()
        if norm is not None:
            values["grad_norm"] = norm
        self._scheduler.step()
        return values

    def whole_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer with the state of every parameter; every rank has to ask for it."""
        return self._raw

    def close(self) -> None:
        """Leave the model as it was without a stepper."""
        return None

    def _prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """What the steps call in place of model and optimizer."""
        wrapped, prepared = self._accelerator.prepare(model, optimizer)
        return wrapped, prepared

    def _accumulating(self, last: bool) -> AbstractContextManager[Any]:
        """Context of a micro-batch: ranks exchange gradients in the last one only."""
        return nullcontext() if last else self._accelerator.no_sync(self._wrapped)

    def _backpropagate(self, loss: Tensor) -> None:
        self._accelerator.backward(loss)

    def _step(self) -> float | None:
        """Clip, step, forget the gradients; returns their norm, None where it is not computed."""
        norm = None
        if self._args.max_grad_norm > 0:
            norm = float(self._accelerator.clip_grad_norm_(self._parameters, self._args.max_grad_norm))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def _backward(self, examples: Sequence[Example], tokens: int, rows: StepRows | None) -> float:
        """Gradients of the global batch into ``.grad``; returns the summed loss of this rank's part."""
        size = self._args.per_device_train_batch_size
        own = self._ranks.share([range(at, min(at + size, len(examples))) for at in range(0, len(examples), size)])
        total = 0.0
        for number, places in enumerate(own, start=1):
            last = number == len(own)
            with self._accumulating(last):
                part = [examples[place] for place in places]
                batch = collate(part, self._pad_token_id).to(self._accelerator.device)
                with self._accelerator.autocast():
                    if rows is None:
                        loss, _ = summed_loss(self._wrapped, batch)
                    else:
                        log_probs, _ = label_log_probs(self._wrapped, batch)
                        loss = rows.loss(-log_probs, places)
                self._backpropagate(loss * (self._ranks.count / tokens))
            total += float(loss.detach())
        return total
