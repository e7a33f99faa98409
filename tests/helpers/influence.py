"""LESS by hand: full gradients, one plain backward pass a sample, cosines in float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.data.collate import collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import sample_gradient
from dataflex.projection.adam import AdamVariant, adam_normalize
from dataflex.selectors.base import SelectionContext


def full_cosines(
    context: SelectionContext, gradient_type: str = "adam", adam_variant: AdamVariant = "adamw"
) -> NDArray[np.float64]:
    """``(n, q)`` cosines of unprojected training and evaluation gradients."""

    def gradients(dataset: TokenizedDataset) -> torch.Tensor:
        return torch.stack([sample_gradient(context.model, collate([e], 2), context.autocast) for e in dataset])

    assert context.eval_dataset is not None
    candidates, targets = gradients(context.train_dataset), gradients(context.eval_dataset).double()
    if gradient_type == "adam":
        candidates = adam_normalize(candidates, adam_moments(context.model, context.optimizer, adam_variant))
    unit = [rows / rows.norm(dim=1, keepdim=True) for rows in (candidates.double(), targets)]
    return (unit[0] @ unit[1].T).numpy()


def by_task(context: SelectionContext, cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n,)``: the mean over each task's targets, then the largest of the tasks."""
    assert context.eval_dataset is not None
    tasks = np.array([sample.metadata["task"] for sample in context.eval_dataset.samples])
    return np.stack([cosines[:, tasks == task].mean(axis=1) for task in sorted(set(tasks))], axis=1).max(axis=1)
