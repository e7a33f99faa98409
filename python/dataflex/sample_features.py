"""Features of labelled samples: phi_i = P u_i, batched where the model allows it.

The batched rule (:mod:`dataflex.gradient_hooks`) streams every layer's block through Adam normalisation and projection
into the accumulator of the batch. Before it is trusted, it is compared with a plain backward pass on this very model;
where it does not apply or does not agree, every sample gets a backward pass of its own, which is announced with its
reason.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dataflex.data.collate import Batch, collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.features import FEATURE_VERSION, adam_moments, fill_store, state_fingerprint
from dataflex.gradient_hooks import BatchedGradients, UnsupportedModel
from dataflex.gradients import sample_gradient
from dataflex.model import trainable_parameters, undisturbed
from dataflex.projection import AdamVariant, Projector
from dataflex.store import FeatureDtype, FeatureStore
from dataflex.types import SelectionContext

logger = logging.getLogger(__name__)

GradientType = Literal["adam", "sgd"]
AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}
"""Largest relative difference between the batched rule and a plain backward pass, by the precision of the forward
pass. A wrong rule is off by about 1; rounding in a batch of other shape is far below these."""
RAW_BLOCK_VALUES = 1 << 27
"""Most values (b x p) that are held at once for raw gradients, whose grid depends on the whole row: 512 MiB."""


class SampleFeatures:
    """Computes features of a dataset's samples in the model's current state.

    Args:
        context: The selection's context.
        dataset: The n samples: candidates, or labelled targets.
        projector: P.
        gradient_type: ``adam`` normalises with the optimizer's moments, ``sgd`` does not.
        adam_variant: Formula of the normalisation.
        batch_tokens: Most padded tokens b x t of one batch; a single longer sample is a batch of its own.
    """

    def __init__(
        self,
        context: SelectionContext,
        dataset: TokenizedDataset,
        projector: Projector,
        *,
        gradient_type: GradientType,
        adam_variant: AdamVariant,
        batch_tokens: int,
    ) -> None:
        self._context = context
        self._dataset = dataset
        self._projector = projector
        self._adam = adam_moments(context.model, context.optimizer, adam_variant) if gradient_type == "adam" else None
        self._spec = {"type": gradient_type, "adam_variant": adam_variant if self._adam else None}
        self._num_parameters = sum(parameter.numel() for _, parameter in trainable_parameters(context.model))
        self._batch_tokens = batch_tokens
        self._device = next(context.model.parameters()).device
        self._batched: BatchedGradients | None = None

    def fill(
        self, directory: Path, *, shard_rows: int, description: str, dtype: FeatureDtype = "float32"
    ) -> FeatureStore:
        """A complete store of the n rows; rows whose gradient is not finite are NaN.

        Args:
            directory: Folder of the store; what the same state left there is used.
            shard_rows: Rows between two writes.
            description: For the progress bar.
            dtype: Type of the features on disk.
        """
        store = FeatureStore(
            directory,
            {
                "version": FEATURE_VERSION,
                "state": state_fingerprint(self._context.model, self._context.optimizer if self._adam else None),
                "data": self._dataset.fingerprint,
                "projection": self._projector.spec(),
                "gradient": self._spec,
                "batch_tokens": self._batch_tokens,
            },
            num_rows=len(self._dataset),
            dim=self._projector.dim,
            shard_rows=shard_rows,
            dtype=dtype,
        )
        if store.missing():
            self._batched = self._checked_rule()
        fill_store(store, self._context.model, self.features, batches=self.batches, description=description)
        return store

    def features(self, rows: Sequence[int]) -> Tensor:
        """Features ``(b, k)`` float32 of b samples by their position."""
        if self._batched is None:
            return torch.cat([self._projector.project(self._plain(row)[None], adam=self._adam) for row in rows])
        if self._adam is None:
            return self._projector.project(self._raw_rows(self._batched, rows))
        adam = self._adam
        accumulator = self._projector.accumulator(len(rows), device=self._device)
        self._batched.run(
            self._collate(rows),
            self._context.autocast,
            lambda block, offset: accumulator.add(block.float(), offset, adam.slice(offset, offset + block.shape[1])),
        )
        return accumulator.features()

    def batches(self, rows: list[int]) -> list[list[int]]:
        """Rows that are computed together: neighbours in length, within the token budget."""
        if self._batched is None:
            return [[row] for row in rows]
        most_rows = max(1, RAW_BLOCK_VALUES // self._num_parameters) if self._adam is None else len(rows)
        batches: list[list[int]] = []
        for row in sorted(rows, key=self._length):
            # Rows come in order of length, so this one sets the width of the batch that it joins.
            fits = batches and (len(batches[-1]) + 1) * self._length(row) <= self._batch_tokens
            if fits and len(batches[-1]) < most_rows:
                batches[-1].append(row)
            else:
                batches.append([row])
        return batches

    def _checked_rule(self) -> BatchedGradients | None:
        """The batched rule if it agrees with plain backward passes on two samples, else None, with a warning."""
        rows = [0, min(1, len(self._dataset) - 1)]
        dtypes = {parameter.dtype for parameter in self._context.model.parameters()}
        with self._context.autocast():
            if torch.is_autocast_enabled(self._device.type):
                dtypes.add(torch.get_autocast_dtype(self._device.type))
        limit = max(AGREEMENT.get(dtype, AGREEMENT[torch.float32]) for dtype in dtypes)
        try:
            rule = BatchedGradients(self._context.model)
            with undisturbed(self._context.model):
                found = self._raw_rows(rule, rows)
                expected = torch.stack([self._plain(row) for row in rows])
        except UnsupportedModel as error:
            reason = str(error)
        else:
            difference = float((found - expected).norm() / expected.norm())
            # A gradient that is not finite proves nothing against the rule.
            if difference <= limit or not expected.isfinite().all():
                return rule
            reason = f"it is off by {difference:.2g} of the gradient's norm (limit {limit:g})"
        logger.warning(
            "gradients are computed one sample at a time, which takes two to four times as long: the batched rule does "
            "not fit this model: %s",
            reason,
        )
        return None

    def _raw_rows(self, rule: BatchedGradients, rows: Sequence[int]) -> Tensor:
        """Whole gradients ``(b, p)`` float32 of b samples by the batched rule."""
        values = torch.zeros((len(rows), self._num_parameters), device=self._device)

        def sink(block: Tensor, offset: int) -> None:
            values[:, offset : offset + block.shape[1]] = block

        rule.run(self._collate(rows), self._context.autocast, sink)
        return values

    def _plain(self, row: int) -> Tensor:
        return sample_gradient(self._context.model, self._collate([row]), self._context.autocast).float()

    def _collate(self, rows: Sequence[int]) -> Batch:
        examples = [self._dataset[row] for row in rows]
        return collate(examples, int(self._context.tokenizer.pad_token_id)).to(self._device)

    def _length(self, row: int) -> int:
        return len(self._dataset[row].input_ids)
