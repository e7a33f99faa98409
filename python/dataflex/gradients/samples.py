"""Features of labelled samples: phi_i = P u_i of each sample's own mean token cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dataflex.data.collate import Batch, collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.gradients.context import GradientContext
from dataflex.gradients.features import GradientFeatures, GradientType, Work
from dataflex.gradients.memory import BatchTokens
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import sample_gradient
from dataflex.models.fingerprint import state_fingerprint
from dataflex.models.losses import mean_losses
from dataflex.projection.projector import AdamVariant, Projector

__all__ = ["GradientType", "SampleFeatures"]


class SampleFeatures(GradientFeatures):
    """Computes features of a dataset's samples in the model's current state.

    Args:
        context: Model, optimizer and processes as they are now.
        dataset: The n samples: candidates, or labelled targets.
        projector: P.
        gradient_type: ``adam`` normalises with the optimizer's moments, ``sgd`` does not.
        adam_variant: Formula of the normalisation.
        batch_tokens: Most padded tokens b x t of one batch, or ``auto``; a single longer sample is a batch of its own.
        rates: Of each parameter, which raw gradients are scaled by (:func:`dataflex.gradients.moments.plain_rates`).
    """

    def __init__(
        self,
        context: GradientContext,
        dataset: TokenizedDataset,
        projector: Projector,
        *,
        gradient_type: GradientType,
        adam_variant: AdamVariant,
        batch_tokens: BatchTokens,
        rates: Sequence[float] = (),
    ) -> None:
        adam = None
        if gradient_type == "adam":
            adam = adam_moments(context.model, context.optimizer, adam_variant, projector.kind.picks)
        super().__init__(context, projector, adam=adam, batch_tokens=batch_tokens, rates=rates)
        self._dataset = dataset
        self._gradient: dict[str, Any] = {"type": gradient_type, "adam_variant": adam_variant if adam else None}
        if adam is not None:
            self._gradient |= {"betas": adam.betas, "eps": adam.eps, "rates": adam.rates}
        elif rates:
            self._gradient["rates"] = list(rates)

    def __len__(self) -> int:
        return len(self._dataset)

    def facts(self) -> dict[str, Any]:
        """State of model and optimizer, data, kind of gradient."""
        optimizer = self._context.optimizer if self._adam else None
        return {
            "state": state_fingerprint(self._model, self._context.autocast, optimizer),
            "data": self._dataset.fingerprint,
            "gradient": self._gradient,
        }

    def _find_lengths(self) -> NDArray[np.int64]:
        return np.asarray(self._dataset.lengths, np.int64)

    def _work(self, items: Sequence[int]) -> Work:
        batch = self._collate(items)

        def losses() -> Tensor:
            with self._autocast():
                return mean_losses(self._model, batch)

        return Work(len(items), losses)

    def _plain(self, item: int) -> Tensor:
        return sample_gradient(self._model, self._collate([item]), self._autocast).float()

    def _collate(self, items: Sequence[int]) -> Batch:
        examples = [self._dataset[item] for item in items]
        return collate(examples, int(self._context.tokenizer.pad_token_id)).to(self._device)
