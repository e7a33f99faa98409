"""Evaluation loss, the best model so far, and when to stop early."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dataflex.data.collate import IGNORE_INDEX, collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.distributed import Ranks
from dataflex.errors import TrainingError
from dataflex.losses import summed_loss
from dataflex.model import undisturbed
from dataflex.progress import progress_bar
from dataflex.types import Autocast


def evaluation_loss(
    model: nn.Module,
    dataset: TokenizedDataset,
    *,
    batch_size: int,
    pad_token_id: int,
    autocast: Autocast,
    ranks: Ranks,
) -> float:
    """Mean cross-entropy over all label tokens of the dataset, in nats; samples without labels do not count.

    The ranks share the batches; each returns the mean over all of them.

    Raises:
        TrainingError: No sample has a label token.
    """
    labelled = [example for example in dataset if any(label != IGNORE_INDEX for label in example.labels)]
    if not labelled:
        raise TrainingError("no evaluation sample has an answer to compute a loss on", hint="set eval_strategy: no")
    device = next(model.parameters()).device
    order = sorted(labelled, key=lambda example: len(example.input_ids))
    batches = ranks.share([order[start : start + batch_size] for start in range(0, len(order), batch_size)])
    total, count = 0.0, 0.0
    with (
        undisturbed(model),
        torch.no_grad(),
        autocast(),
        progress_bar(sum(map(len, batches)), "evaluation loss", unit="row", disable=not ranks.is_main) as bar,
    ):
        for chosen in batches:
            loss, tokens = summed_loss(model, collate(chosen, pad_token_id).to(device))
            total += float(loss)
            count += tokens
            bar.update(len(chosen))
    total, count = ranks.sum([total, count])
    return total / count


@dataclass(frozen=True, slots=True)
class BestSoFar:
    """The best value of a metric and how long ago it was reached.

    Attributes:
        value: Best value, None before the first evaluation.
        step: Step of the best value.
        stale: Evaluations since the last one that counted as progress.
        anchor: Value that the next one has to beat by the smallest improvement.
    """

    value: float | None = None
    step: int | None = None
    stale: int = 0
    anchor: float | None = None

    def update(self, value: float, step: int, *, greater_is_better: bool, min_delta: float) -> BestSoFar:
        """The record after another evaluation; progress is an improvement on the anchor by more than ``min_delta``."""
        sign = 1.0 if greater_is_better else -1.0
        better = self.value is None or sign * (value - self.value) > 0
        progress = self.anchor is None or sign * (value - self.anchor) > min_delta
        return BestSoFar(
            value=value if better else self.value,
            step=step if better else self.step,
            stale=0 if progress else self.stale + 1,
            anchor=value if progress else self.anchor,
        )
