"""What selectors by gradient similarity share: training features, directions of the targets, scores, top k.

A candidate's feature is phi_i = P u_i with its (Adam-normalised) loss gradient u_i; the targets are features of the
evaluation set, and a subclass says how they come about. A candidate's score is its cosine with the targets, aggregated
over them (:mod:`dataflex.gradients.similarity`).
"""

from __future__ import annotations

import logging
import shutil
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import SelectionError
from dataflex.gradients.features import GradientFeatures, report_broken
from dataflex.gradients.moments import adam_settings, adam_states
from dataflex.gradients.reliability import Reliability, target_reliability
from dataflex.gradients.samples import SampleFeatures
from dataflex.gradients.similarity import (
    Aggregate,
    Blocks,
    Influence,
    Scores,
    influence_scores,
    target_directions,
    unusual_rows,
)
from dataflex.gradients.store import FeatureStore
from dataflex.gradients.turns import choose
from dataflex.projection.projector import AdamMoments, Projector
from dataflex.selectors.base import Selection, SelectionContext
from dataflex.selectors.candidates import CandidateSelector
from dataflex.selectors.gradient.config import GradientConfigT
from dataflex.selectors.gradient.report import report_unusable, say_reliability, with_candidates
from dataflex.selectors.gradient.targets import Directions, Targets, split_answered
from dataflex.selectors.plan import Plan, PlannedPart
from dataflex.types import Sample, group_names
from dataflex.utils.progress import Stopwatch
from dataflex.utils.shown import listed

logger = logging.getLogger(__name__)

TRAINING = "training gradients"
EVALUATION = "evaluation gradients"
"""Names of the parts of a round, in progress bars and reports."""


class GradientSelector(CandidateSelector[GradientConfigT]):
    """Selects the candidates whose features are most aligned with those of the targets."""

    needs_eval_dataset: ClassVar[bool] = True
    more_reliable: ClassVar[str] = "more evaluation samples, or samples of one kind"
    """What to change where the targets' direction is mostly noise."""

    @abstractmethod
    def targets(self, context: SelectionContext, projector: Projector, watch: Stopwatch) -> Targets:
        """The evaluation side of this round.

        Args:
            context: The selection's context.
            projector: The projection of both sides.
            watch: Counts the time of each part.
        """

    def plan(self, context: SelectionContext) -> Plan:
        """Gradients of the candidates that are looked at, after what the prefilter does."""
        left, first = self.planned_among(context)
        features = self.training_gradients(left, self.projector())
        parts = [*first.parts, self.planned(TRAINING, features, left.train_dataset.lengths)]
        return replace(first, parts=parts)

    def check(self, context: SelectionContext) -> None:
        """Check the projection, the evaluation set and the optimizer before training starts.

        Raises:
            SelectionError: There is no evaluation set, or no optimizer.
            GradientError: The optimizer is none that gradients can be normalised with.
        """
        super().check(context)
        self.projector()
        if not context.eval_dataset:
            raise SelectionError(f"{self.name} needs an evaluation set", hint="set eval_dataset")
        if self.config.gradient_type == "adam":
            self._check_optimizer(context.optimizer)

    def select_among(self, context: SelectionContext) -> Selection:
        """Run one round: targets, training features, scores.

        Raises:
            GradientError: Gradients are to be normalised, and the optimizer has no moments.
            SelectionError: There is no usable target, or too few candidates have a usable gradient.
        """
        if self.config.gradient_type == "adam":
            adam_states(context.model, context.optimizer)  # before answers are drawn and rewards paid for
        watch = Stopwatch()
        projector = self.projector()
        targets = self.targets(context, projector, watch)
        if context.ranks.is_main:
            self.say_reliability(targets.reliability)
        with watch.phase(TRAINING):
            train = self.training_features(context, projector)
        with watch.phase("scores"):
            indices, scores = self.ranked(
                context, lambda: [Influence(train.blocks(), targets.directions)], targets.aggregate
            )
        context.ranks.barrier()  # all have read what is removed now
        if context.ranks.is_main:
            self._prune(context)
        report = {
            "seconds": watch.seconds,
            "reliability": targets.reliability.facts(),
            **with_candidates(targets.report, scores),
        }
        return Selection(indices, scores.values, self.name, context.step, context.round, report)

    def ranked(
        self, context: SelectionContext, parts: Callable[[], Sequence[Influence]], aggregate: Aggregate
    ) -> tuple[NDArray[np.int64], Scores]:
        """The candidates to train on, best first, and the scores of all."""
        scores = influence_scores(parts(), len(context.train_dataset))
        report_unusable(scores, context.train_dataset.samples)
        seed = (self.config.seed, context.round)
        return choose(parts, scores, context.num_samples, aggregate, seed), scores

    def projector(self) -> Projector:
        """The configured projection."""
        return Projector(self.config.proj_dim, self.config.projection, self.config.seed)

    def training_gradients(self, context: SelectionContext, projector: Projector) -> SampleFeatures:
        """What computes the candidates' features in the model's current state."""
        return SampleFeatures(
            context,
            context.train_dataset,
            projector,
            gradient_type=self.config.gradient_type,
            adam_variant=self.config.adam_variant,
            batch_tokens=self.config.feature_batch_tokens,
        )

    def training_features(self, context: SelectionContext, projector: Projector) -> FeatureStore:
        """Features of all candidates in the model's current state."""
        return self.training_gradients(context, projector).fill(
            self.round_dir(context) / "train",
            shard_rows=self.config.save_interval,
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

    def reference_features(self, context: SelectionContext, projector: Projector) -> tuple[FeatureStore, list[Sample]]:
        """Features of the reference answers.

        Returns:
            The store and the sample of each of its rows: the evaluation samples that have an answer.

        Raises:
            SelectionError: No evaluation sample has one.
        """
        features, dataset = self.reference_gradients(context, projector)
        store = features.fill(
            self.round_dir(context) / "eval",
            shard_rows=self.config.save_interval,
            description=EVALUATION,
            dtype=self.config.features_dtype,
        )
        return store, dataset.samples

    def planned(self, name: str, features: GradientFeatures, lengths: Sequence[int]) -> PlannedPart:
        """One side's features, with the tokens of each of its rows, as a part of the plan."""
        config = self.config
        return PlannedPart(
            name=name,
            lengths=lengths,
            prepare=features.prepare,
            batches=features.batches,
            compute=features.features,
            open_store=lambda folder: FeatureStore(
                folder, {}, len(lengths), config.proj_dim, config.save_interval, config.features_dtype
            ),
        )

    def say_reliability(self, found: Reliability) -> None:
        """Log how far the targets' direction can be trusted; a warning says what to change where it cannot."""
        say_reliability(found, self.more_reliable)

    def directions(self, blocks: Callable[[], Blocks], samples: Sequence[Sample], aggregate: Aggregate) -> Directions:
        """Directions of the usable evaluation rows.

        Args:
            blocks: Streams the features of the targets, one row a sample; called once a pass.
            samples: The samples of these rows.
            aggregate: Rule over the targets.
        """
        not_finite, zero = unusual_rows(blocks())
        facts = {"not_finite": [samples[row].id for row in not_finite], "zero": [samples[row].id for row in zero]}
        report_broken("evaluation", facts["not_finite"])
        if zero:
            logger.warning("%d evaluation samples have a gradient of zero: %s", len(zero), listed(facts["zero"]))
        groups = group_names(samples, self.config.task_column)
        vectors = target_directions(blocks(), aggregate, groups, leave_out=set(not_finite))
        return Directions(vectors, self.reliability(blocks(), groups, aggregate, {*not_finite, *zero}), facts)

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

    def _check_optimizer(self, optimizer: torch.optim.Optimizer | None) -> None:
        if optimizer is None:
            raise SelectionError(
                f"{self.name}: gradient_type 'adam' normalises with an optimizer's moments, and there is no optimizer",
                hint="gradient_type: sgd, or a checkpoint that holds the optimizer's state (checkpoint)",
            )
        one = torch.ones(1)
        moments = AdamMoments(one, one, 1, *adam_settings(optimizer), self.config.adam_variant)
        # Whether any betas will do depends on the kind of projection: those on a fixed grid need a bound.
        self.projector().accumulator(1).add(one[None], 0, moments)

    def _prune(self, context: SelectionContext) -> None:
        """Remove the features that ``keep_features`` does not keep."""
        current = self.round_dir(context)
        for path in sorted(current.parent.glob("step-*")):
            keep = self.config.keep_features == "all" or (self.config.keep_features == "last" and path == current)
            if not keep:
                shutil.rmtree(path)
