"""Weights from how alike samples are to the evaluation set, in the model's own states.

Zhao et al., "Rethinking Data Curation in LLM Training: Online Reweighting Offers Better Generalization than Offline
Methods" (ADAPT, ICLR 2026, arXiv 2605.05227). A sample's state is the position-weighted mean of its last hidden states
(:func:`dataflex.models.hidden.pooled_states`). With the states a_j of anchor rows from the evaluation set, the sample i
weighs

    w_i = sigmoid( mean_j cos(h_i, a_j) / tau ).

The anchors' states are computed anew every ``refresh_interval`` steps, with the model as it is then.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dataflex.weighters.base import GlobalBatch, Weighter, WeighterConfig
from dataflex.weighters.measuring import row_states


class AdaptConfig(WeighterConfig):
    """Parameters of ``adapt``."""

    temperature: float = Field(0.1, gt=0, allow_inf_nan=False, description="tau: smaller ones tell samples apart more")
    anchors: int = Field(32, ge=1, description="evaluation rows to compare with, drawn by the seed of the run")
    refresh_interval: int = Field(100, ge=1, description="steps after which the anchors' states are computed anew")


class AdaptWeighter(Weighter[AdaptConfig]):
    """Weighs samples by the cosine of their pooled hidden states with those of evaluation rows.

    Source: Zhao et al., Rethinking Data Curation in LLM Training: Online Reweighting Offers Better Generalization than
    Offline Methods, arXiv 2605.05227.

    Example:
        >>> weighter = AdaptWeighter(temperature=0.1, anchors=32)
    """

    name: ClassVar[str] = "adapt"
    Config = AdaptConfig
    needs_eval_dataset: ClassVar[bool] = True

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._direction: list[float] | None = None
        self._refreshed = 0

    @property
    def passes(self) -> float:
        """One; that over the anchors comes every ``refresh_interval`` steps only."""
        return 1.0

    def weights(self, batch: GlobalBatch) -> NDArray[np.float64]:
        """Sigmoid of the mean cosine with the anchors."""
        if self._direction is None or batch.step - self._refreshed >= self.config.refresh_interval:
            self._direction, self._refreshed = self._anchor_direction(batch).tolist(), batch.step
        return similarity_weights(batch.states, np.array(self._direction), self.config.temperature)

    def state_dict(self) -> dict[str, Any]:
        """The anchors' mean direction, and the step that it is of."""
        return {"direction": self._direction, "refreshed": self._refreshed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the same anchors' states."""
        self._direction, self._refreshed = state["direction"], state["refreshed"]

    def _anchor_direction(self, batch: GlobalBatch) -> NDArray[np.float64]:
        """Mean of the anchors' unit states ``(h,)``: a product with it is the mean cosine."""
        assert batch.eval_dataset is not None
        total = len(batch.eval_dataset)
        count = min(self.config.anchors, total)
        rows = np.sort(np.random.default_rng([batch.seed, 5]).choice(total, size=count, replace=False))
        states = row_states(batch, [batch.eval_dataset[int(row)] for row in rows])
        direction: NDArray[np.float64] = unit_rows(states).mean(axis=0)
        return direction


def similarity_weights(
    states: NDArray[np.float64], direction: NDArray[np.float64], temperature: float
) -> NDArray[np.float64]:
    """Weights ``(B,)`` from states ``(B, h)`` and the mean ``(h,)`` of the anchors' unit states."""
    weights: NDArray[np.float64] = 1 / (1 + np.exp(-(unit_rows(states) @ direction) / temperature))
    return weights


def unit_rows(states: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; a zero row stays zero."""
    norms = np.linalg.norm(states, axis=1, keepdims=True)
    rows: NDArray[np.float64] = states / np.where(norms == 0, 1, norms)
    return rows
