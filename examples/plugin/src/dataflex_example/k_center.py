"""k-center greedy: samples that cover the data (Sener and Savarese 2018, arXiv 1708.00489, algorithm 1).

Every candidate is a point x_i; a selection S is good if no candidate is far from it, that is, if its radius
max_i min_{j in S} |x_i - x_j| is small. The best S is NP-hard to find. The greedy rule takes the candidate that is
farthest from everything taken so far, again and again; its radius is at most twice the best one (Gonzalez 1985).

Points are the mean over tokens of the model's last hidden state, scaled to length 1, in the model's current state: what
looks alike to the model counts as covered.

The paper starts from samples that are labelled already. Here these are the samples that earlier rounds took
(``remember``); the very first one is the candidate nearest to the mean of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from dataflex import Selection, SelectionContext, Selector, SelectorConfig
from dataflex.data.collate import collate
from dataflex.errors import SelectionError
from dataflex.models.model import base_model, undisturbed

DIAMETER = 2.0
"""Largest distance of two points of length 1: the score of a first sample, when nothing is covered yet."""


class KCenterConfig(SelectorConfig):
    """Parameters of ``k_center``; each field's description is what ``dataflex plugins show k_center`` prints."""

    batch_size: int = Field(16, ge=1, description="candidates that go through the model at once")
    remember: bool = Field(True, description="samples of earlier rounds count as covered and are not taken again")


class KCenterSelector(Selector[KCenterConfig]):
    """Takes the candidate that is farthest from all that were taken, until there are enough.

    A candidate's score is its distance to what was taken before it; for those that were not taken, to all that was.
    """

    name: ClassVar[str] = "k_center"
    Config = KCenterConfig

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._taken: list[int] = []

    def check(self, context: SelectionContext) -> None:
        """Refuse more samples than there are candidates, before training starts."""
        if context.num_samples > len(context.train_dataset):
            raise SelectionError(
                f"{context.num_samples} samples are to be selected from {len(context.train_dataset)} candidates",
                hint="a smaller update_step",
            )

    def select(self, context: SelectionContext) -> Selection:
        """Select ``num_samples`` candidates, best first; once fewer are left, all may be taken again."""
        self.check(context)
        n = len(context.train_dataset)
        if not self.config.remember or len(self._taken) + context.num_samples > n:
            self._taken = []
        points = self._points(context)
        # The main process decides: another machine's rounding could turn a near tie into another selection.
        found = context.ranks.on_main(lambda: _choose(points, context.num_samples, self._taken))
        report = {"covered_before": len(self._taken), "radius": max(found["distances"])}
        self._taken += found["indices"]
        indices = np.array(found["indices"], dtype=np.int64)
        scores = np.array(found["distances"], dtype=np.float64)
        scores[indices] = found["gains"]
        return Selection(indices, scores, self.name, context.step, context.round, report)

    def state_dict(self) -> dict[str, Any]:
        """What earlier rounds took: a resumed run goes on from there."""
        return {"taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._taken = list(state["taken"])

    def _points(self, context: SelectionContext) -> NDArray[np.float64]:
        """The candidates ``(n, d)``, rows of length 1; ranks share the work."""
        dataset, ranks = context.train_dataset, context.ranks
        # Neighbours in length waste no padding; the batches do not depend on the number of ranks, so neither do floats.
        by_length = sorted(range(len(dataset)), key=lambda row: (dataset.lengths[row], row))
        size = self.config.batch_size
        batches = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        with undisturbed(context.model), torch.no_grad(), context.autocast():
            own = [_pooled(context, batch) for batch in ranks.share(batches)]
        parts = ranks.gather_tensors(torch.cat(own) if own else torch.empty(0, 0))
        rows = [row for rank in range(ranks.count) for batch in batches[rank :: ranks.count] for row in batch]
        points = torch.cat([part for part in parts if len(part)]).double().numpy()  # (n, d), in the order of rows
        placed = np.empty_like(points)
        placed[rows] = points
        unit: NDArray[np.float64] = placed / np.linalg.norm(placed, axis=1, keepdims=True).clip(1e-12)
        return unit


def k_center(
    points: NDArray[np.float64], count: int, covered: Sequence[int] = ()
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The greedy rule.

    Args:
        points: ``(n, d)`` rows of length 1.
        count: How many to take.
        covered: Positions that count as taken already.

    Returns:
        ``(count,)`` int64 positions in the order in which they were taken; ``(count,)`` their distances to what was
        taken before; ``(n,)`` the distances of all to what was taken in the end. Ties go to the smaller position.
    """
    distances = np.full(len(points), DIAMETER)
    taken = np.zeros(len(points), dtype=bool)

    def take(row: int) -> None:
        taken[row] = True
        squared = 2 - 2 * (points @ points[row])  # |x - c|^2 of points of length 1
        np.minimum(distances, np.sqrt(squared.clip(0)), out=distances)
        distances[row] = 0.0

    for row in covered:
        take(row)
    indices, gains = [], []
    for _ in range(count):
        closeness = points @ points.mean(axis=0) if not taken.any() else distances
        row = int(np.argmax(np.where(taken, -np.inf, closeness)))
        indices.append(row)
        gains.append(distances[row])
        take(row)
    return np.array(indices, dtype=np.int64), np.array(gains), distances


def _choose(points: NDArray[np.float64], count: int, covered: Sequence[int]) -> dict[str, list[Any]]:
    """:func:`k_center` as JSON, to be sent to the other ranks."""
    indices, gains, distances = k_center(points, count, covered)
    return {"indices": indices.tolist(), "gains": gains.tolist(), "distances": distances.tolist()}


def _pooled(context: SelectionContext, rows: Sequence[int]) -> torch.Tensor:
    """Mean last hidden state of each of b candidates, ``(b, d)`` float32 on the CPU."""
    device = next(context.model.parameters()).device
    batch = collate([context.train_dataset[row] for row in rows], int(context.tokenizer.pad_token_id)).to(device)
    # The model without its output head. Asking it for output_hidden_states would leave transformers' hooks behind.
    transformer: Any = base_model(context.model).base_model
    found = transformer(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    hidden = found.last_hidden_state  # (b, t, d)
    weights = batch.attention_mask[:, :, None].to(torch.float32)  # (b, t, 1)
    pooled: torch.Tensor = (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
    return pooled.cpu()
