"""The gradients of a round as parts of a plan, which a dry run times a little of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dataflex.gradients.exact import exact_pass, open_scores, target_batches, target_pass
from dataflex.gradients.features import GradientFeatures
from dataflex.gradients.store import FeatureStore
from dataflex.models.model import trainable_parameters
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.gradient.config import GradientConfig
from dataflex.selectors.plan import PlannedPart


def planned_features(
    config: GradientConfig, name: str, features: GradientFeatures, lengths: Sequence[int]
) -> PlannedPart:
    """Projected features of one side.

    Args:
        config: Parameters of the selector.
        name: Of the part.
        features: Computes them.
        lengths: Tokens of each row.
    """
    return PlannedPart(
        name=name,
        lengths=lengths,
        prepare=features.prepare,
        batches=lambda: list(features.layout().rows_of()),
        compute=features.features,
        open_store=lambda folder: FeatureStore(folder, {}, features.layout(), config.proj_dim, config.features_dtype),
    )


def planned_scores(
    context: SelectionContext,
    config: GradientConfig,
    name: str,
    features: GradientFeatures,
    lengths: Sequence[int],
    directions: int,
) -> PlannedPart:
    """The exact pass over the candidates; what is compared with here is no target's direction, and takes as long."""
    count = sum(parameter.numel() for _, parameter in trainable_parameters(context.model))
    vectors = torch.full((directions, count), count**-0.5, device=next(context.model.parameters()).device)
    return PlannedPart(
        name=name,
        lengths=lengths,
        prepare=features.prepare,
        batches=lambda: list(features.layout().rows_of()),
        compute=exact_pass(context, features, vectors),
        open_store=lambda folder: open_scores(folder, {}, features.layout(), directions),
    )


def planned_targets(
    context: SelectionContext, config: GradientConfig, name: str, features: GradientFeatures, lengths: Sequence[int]
) -> PlannedPart:
    """The targets' directions, of which nothing is stored; arguments as above."""
    return PlannedPart(
        name=name,
        lengths=lengths,
        prepare=features.prepare,
        batches=lambda: [
            [item for group in batch for item in group]
            for batch in target_batches(context, features, [[row] for row in range(len(lengths))])
        ],
        compute=target_pass(context, features, config.seed),
    )
