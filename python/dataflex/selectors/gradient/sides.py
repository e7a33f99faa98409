"""The gradients of both sides, as any selector that compares them configures, checks, computes and keeps them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import SelectionError
from dataflex.gradients.features import GradientFeatures
from dataflex.gradients.moments import adam_settings, plain_rates
from dataflex.gradients.reliability import Reliability, target_reliability
from dataflex.gradients.samples import SampleFeatures
from dataflex.gradients.similarity import Aggregate, Blocks
from dataflex.gradients.store import FeatureStore
from dataflex.plugins.configurable import Configurable
from dataflex.projection.projector import AdamMoments, Projector
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.gradient.config import GradientConfigT
from dataflex.selectors.gradient.report import say_reliability
from dataflex.selectors.gradient.targets import split_answered
from dataflex.types import Sample
from dataflex.utils.shown import listed

logger = logging.getLogger(__name__)

TRAINING = "training gradients"
EVALUATION = "evaluation gradients"
"""Names of the parts of a round, in progress bars and reports."""


class GradientSides(Configurable[GradientConfigT]):
    """Gradients of candidates and of reference answers, in the model's current state."""

    more_reliable: ClassVar[str] = "more evaluation samples, or samples of one kind"
    """What to change where the targets' direction is mostly noise."""

    def check_sides(self, context: SelectionContext, *, exact: bool) -> None:
        """Check the projection, the evaluation set and the optimizer before training starts.

        Args:
            context: The first selection's context.
            exact: Whole gradients are compared, without projection.

        Raises:
            SelectionError: There is no evaluation set, or no optimizer.
            ProjectionError: The projection cannot be had.
            GradientError: The optimizer is none that gradients can be normalised with.
        """
        if not context.eval_dataset:
            raise SelectionError(f"{self.name} needs an evaluation set", hint="set eval_dataset")
        projector = None if exact else self.projector()
        if self.config.gradient_type == "adam":
            self._check_optimizer(context.optimizer, projector)

    def projector(self) -> Projector:
        """The configured projection."""
        return Projector(self.config.proj_dim, self.config.projection, self.config.seed)

    def training_gradients(self, context: SelectionContext, projector: Projector) -> SampleFeatures:
        """What computes the candidates' features in the model's current state.

        Raw gradients have the learning rates of their parameters, if the optimizer is one that steps by them.
        """
        raw = self.config.gradient_type == "sgd"
        return SampleFeatures(
            context,
            context.train_dataset,
            projector,
            gradient_type=self.config.gradient_type,
            adam_variant=self.config.adam_variant,
            batch_tokens=self.config.feature_batch_tokens,
            rates=plain_rates(context.model, context.optimizer) if raw else (),
        )

    def training_features(self, context: SelectionContext, projector: Projector) -> FeatureStore:
        """Features of all candidates in the model's current state."""
        return self.training_gradients(context, projector).fill(
            self.round_dir(context) / "train",
            save_rows=self.config.save_interval,
            description=TRAINING,
            dtype=self.config.features_dtype,
        )

    def reference_gradients(
        self, context: SelectionContext, projector: Projector
    ) -> tuple[SampleFeatures, TokenizedDataset]:
        """What computes the features of the reference answers, and the evaluation samples that have one.

        The gradients are plain, never Adam-normalised.

        Raises:
            SelectionError: No evaluation sample has an answer.
        """
        answered, without = split_answered(context)
        if not answered:
            raise SelectionError(
                "no evaluation sample has a reference answer to take a gradient of", hint="add answers to eval_dataset"
            )
        if without:
            logger.warning(
                "%d evaluation samples have no reference answer and are left out: %s", len(without), listed(without)
            )
        assert context.eval_dataset is not None
        dataset = context.eval_dataset.select(answered)
        features = SampleFeatures(
            context,
            dataset,
            projector,
            gradient_type="sgd",
            adam_variant=self.config.adam_variant,
            batch_tokens=self.config.feature_batch_tokens,
        )
        return features, dataset

    def reference_features(
        self, context: SelectionContext, projector: Projector
    ) -> tuple[FeatureStore, Sequence[Sample]]:
        """Features of the reference answers.

        Returns:
            The store and the sample of each of its rows: the evaluation samples that have an answer.

        Raises:
            SelectionError: No evaluation sample has one.
        """
        features, dataset = self.reference_gradients(context, projector)
        return self.evaluation_features(context, features), dataset.samples

    def evaluation_features(self, context: SelectionContext, features: GradientFeatures) -> FeatureStore:
        """The store of the evaluation side's features."""
        return features.fill(
            self.round_dir(context) / "eval",
            save_rows=self.config.save_interval,
            description=EVALUATION,
            dtype=self.config.features_dtype,
        )

    def say_reliability(self, found: Reliability) -> None:
        """Log how far the targets' direction can be trusted; a warning says what to change where it cannot."""
        say_reliability(found, self.more_reliable)

    def reliability(
        self, blocks: Blocks, groups: Sequence[str | None], aggregate: Aggregate, leave_out: Collection[int]
    ) -> Reliability:
        """How far two halves of the targets agree, task by task where the rule keeps tasks apart."""
        tasks = [str(group) for group in groups] if aggregate == "task_max" else ()
        return target_reliability(blocks, len(groups), seed=self.config.seed, groups=tasks, leave_out=leave_out)

    def work_dir(self, context: SelectionContext) -> Path:
        """Folder of everything that rounds leave behind."""
        return self.config.cache_dir or context.output_dir

    def round_dir(self, context: SelectionContext) -> Path:
        """Folder of this round's features."""
        return self.work_dir(context) / "features" / f"step-{context.step}"

    def prune(self, context: SelectionContext) -> None:
        """Remove the features that ``keep_features`` does not keep."""
        current = self.round_dir(context)
        for path in sorted(current.parent.glob("step-*")):
            keep = self.config.keep_features == "all" or (self.config.keep_features == "last" and path == current)
            if not keep:
                shutil.rmtree(path)

    def _check_optimizer(self, optimizer: torch.optim.Optimizer | None, projector: Projector | None) -> None:
        if optimizer is None:
            raise SelectionError(
                f"{self.name}: gradient_type 'adam' normalises with an optimizer's moments, and there is no optimizer",
                hint="gradient_type: sgd, or a checkpoint that holds the optimizer's state (checkpoint)",
            )
        one = torch.ones(1)
        moments = AdamMoments(one, one, 1, *adam_settings(optimizer, self.config.adam_variant))
        if projector is None:  # any betas will do
            return
        # Whether any betas will do depends on the kind of projection: those on a fixed grid need a bound.
        projector.accumulator(1).add(one[None], 0, moments)
