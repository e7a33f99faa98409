"""What selectors by gradient similarity share: gradients of candidates, directions of the targets, scores, top k.

A candidate's score is the cosine of its (Adam-normalised) loss gradient u_i with the targets' gradients, aggregated
over them; a subclass says which gradients these are. It is computed in one of two ways (``scoring``): exactly, in R^p,
where the rule has few directions (:mod:`dataflex.gradients.exact`), or between features phi_i = P u_i that stay on disk
(:mod:`dataflex.gradients.similarity`).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import SelectionError
from dataflex.gradients.exact import exact_sums, sketch_projector
from dataflex.gradients.features import GradientFeatures
from dataflex.gradients.moments import adam_states
from dataflex.gradients.policy import halves_agreement, whole_rows
from dataflex.gradients.reliability import Reliability
from dataflex.gradients.similarity import (
    Aggregate,
    Blocks,
    Influence,
    Scores,
    influence_scores,
    target_directions,
    unusual_rows,
)
from dataflex.gradients.turns import choose
from dataflex.models.model import trainable_parameters
from dataflex.projection.projector import Projector
from dataflex.selectors.base import Selection, SelectionContext
from dataflex.selectors.candidates import CandidateSelector
from dataflex.selectors.gradient.config import GradientConfigT
from dataflex.selectors.gradient.exact import choose_exactly, compare, forget_others
from dataflex.selectors.gradient.planning import planned_features, planned_scores, planned_targets
from dataflex.selectors.gradient.report import (
    report_unusable,
    score_words,
    unusual_targets,
    with_candidates,
)
from dataflex.selectors.gradient.scoring import Scoring, decide
from dataflex.selectors.gradient.sides import EVALUATION, TRAINING, GradientSides
from dataflex.selectors.gradient.targets import Directions, TargetGradients, Targets
from dataflex.selectors.plan import Plan, PlannedPart
from dataflex.types import Sample, group_names
from dataflex.utils.progress import Stopwatch

logger = logging.getLogger(__name__)

_Round = tuple[NDArray[np.int64], Scores, Reliability, Mapping[str, Any]]
"""Positions, best first; scores; reliability and report of the targets."""


class FeatureSelector(GradientSides[GradientConfigT], CandidateSelector[GradientConfigT]):
    """Selects the candidates whose features are most aligned with directions; a subclass makes the directions.

    Whoever compares with gradients takes :class:`GradientSelector`, which scores exactly, too.
    """

    needs_eval_dataset: ClassVar[bool] = True

    @abstractmethod
    def targets(self, context: SelectionContext, projector: Projector, watch: Stopwatch) -> Targets:
        """The evaluation side of this round, in the space of the candidates' features.

        Args:
            context: The selection's context.
            projector: The projection of both sides.
            watch: Counts the time of each part.
        """

    def scoring(self, context: SelectionContext) -> Scoring:
        """How candidates are compared, and why: by projected features.

        Raises:
            SelectionError: Exact scores are asked for, and cannot be had.
        """
        del context
        why = f"{self.name} compares features that it makes itself"
        if self.config.scoring == "exact":
            raise SelectionError(f"{why}: it has no exact scores", hint="scoring: projected")
        return Scoring("projected", why, 0)

    def projector_for(self, scoring: Scoring) -> Projector:
        """The projection of a round."""
        return sketch_projector(self.config.seed) if scoring.exact else self.projector()

    def plan(self, context: SelectionContext) -> Plan:
        """Gradients of the candidates that are looked at, after what the prefilter does."""
        left, first = self.planned_among(context)
        scoring = self.scoring(left)
        features = self.training_gradients(left, self.projector_for(scoring))
        part = self.planned(left, TRAINING, features, left.train_dataset.lengths)
        notes = [*first.notes, f"scoring: {scoring.used} ({scoring.why})"]
        return replace(first, parts=[*first.parts, part], notes=notes)

    def check(self, context: SelectionContext) -> None:
        """Check the projection, the evaluation set and the optimizer before training starts.

        Raises:
            SelectionError: There is no evaluation set, no optimizer, or no room for the exact scores asked for.
            GradientError: The optimizer is none that gradients can be normalised with.
        """
        super().check(context)
        if not context.eval_dataset:  # of which exact scores ask how many directions there are
            raise SelectionError(f"{self.name} needs an evaluation set", hint="set eval_dataset")
        self.check_sides(context, exact=self.scoring(context).exact)

    def select_among(self, context: SelectionContext) -> Selection:
        """Run one round: targets, one pass over the candidates, scores.

        Raises:
            GradientError: Gradients are to be normalised, and the optimizer has no moments.
            SelectionError: There is no usable target, or too few candidates have a usable gradient.
        """
        if self.config.gradient_type == "adam":
            adam_states(context.model, context.optimizer)  # before answers are drawn and rewards paid for
        watch = Stopwatch()
        scoring = self.scoring(context)
        if context.ranks.is_main:
            logger.info("scoring: %s (%s)", scoring.used, scoring.why)
            if scoring.exact and self.config.keep_features == "all":
                logger.warning("keep_features: all has no effect: exact scoring makes no features (scoring: projected)")
        indices, scores, reliability, targets = self._round(context, scoring, watch)
        report = {
            "seconds": watch.seconds,
            **self._score_facts(context),
            "reliability": reliability.facts(),
            "scoring": scoring.facts(),
            **with_candidates(targets, scores),
        }
        return Selection(indices, scores.values, self.name, context.step, context.round, report)

    def _score_facts(self, context: SelectionContext) -> dict[str, str]:
        """What a score is, under ``score``, where that is known: directions of one's own may mean anything."""
        del context
        return {}

    def _round(self, context: SelectionContext, scoring: Scoring, watch: Stopwatch) -> _Round:
        """Targets, one pass over the candidates, scores: by projected features."""
        del scoring
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
            self.prune(context)
        return indices, scores, targets.reliability, targets.report

    def ranked(
        self, context: SelectionContext, parts: Callable[[], Sequence[Influence]], aggregate: Aggregate
    ) -> tuple[NDArray[np.int64], Scores]:
        """The candidates to train on, best first, and the scores of all."""
        scores = influence_scores(parts(), len(context.train_dataset))
        report_unusable(scores, context.train_dataset.samples)
        seed = (self.config.seed, context.round)
        return choose(parts, scores, context.num_samples, aggregate, seed), scores

    def planned(
        self, context: SelectionContext, name: str, features: GradientFeatures, lengths: Sequence[int]
    ) -> PlannedPart:
        """One side's gradients, with the tokens of each of its rows, as a part of the plan."""
        del context
        return planned_features(self.config, name, features, lengths)


class GradientSelector(FeatureSelector[GradientConfigT]):
    """Selects the candidates whose gradients are most aligned with those of targets, exactly or by features."""

    @abstractmethod
    def target_gradients(self, context: SelectionContext, projector: Projector, watch: Stopwatch) -> TargetGradients:
        """The gradients of this round's targets, of which directions are made, exact or projected.

        Args:
            context: The selection's context.
            projector: The projection, where one is wanted.
            watch: Counts the time of each part.
        """

    @abstractmethod
    def expected_targets(self, context: SelectionContext) -> tuple[Aggregate, Sequence[Sample]]:
        """The rule over the targets, and the samples that can be one.

        Args:
            context: The selection's context.

        Returns:
            The rule, and the samples that can be a target.
        """

    def targets(self, context: SelectionContext, projector: Projector, watch: Stopwatch) -> Targets:
        """The evaluation side of this round, projected.

        Args:
            context: The selection's context.
            projector: The projection of both sides.
            watch: Counts the time of each part.
        """
        gradients = self.target_gradients(context, projector, watch)
        with watch.phase(EVALUATION):
            store = self.evaluation_features(context, gradients.features)

            def whole() -> Blocks:
                return whole_rows(store.blocks(), gradients.factors)

            found = self.directions(whole, gradients.samples, gradients.aggregate)
            answers = halves_agreement(store.blocks(), gradients.factors)
        reliability = replace(found.reliability, answers=answers)
        return Targets(found.vectors, gradients.aggregate, reliability, gradients.report(found.unusual))

    def scoring(self, context: SelectionContext) -> Scoring:
        """Whether whole gradients or projected features are compared, and why.

        Raises:
            SelectionError: Exact scores are asked for, and cannot be had.
        """
        aggregate, samples = self.expected_targets(context)
        count = {"mean": 1, "task_max": len(set(group_names(samples, self.config.task_column)))}
        return decide(
            self.config,
            aggregate,
            max(1, count.get(aggregate, len(samples))),
            parameters=sum(parameter.numel() for _, parameter in trainable_parameters(context.model)),
            candidates=len(context.train_dataset),
        )

    def planned(
        self, context: SelectionContext, name: str, features: GradientFeatures, lengths: Sequence[int]
    ) -> PlannedPart:
        """One side's gradients, with the tokens of each of its rows, as a part of the plan."""
        scoring = self.scoring(context)
        if not scoring.exact:
            return super().planned(context, name, features, lengths)
        if name == EVALUATION:
            return planned_targets(context, self.config, name, features, lengths)
        return planned_scores(context, self.config, name, features, lengths, scoring.directions)

    def directions(self, blocks: Callable[[], Blocks], samples: Sequence[Sample], aggregate: Aggregate) -> Directions:
        """Directions of the usable evaluation rows.

        Args:
            blocks: Streams the features of the targets, one row a sample; called once a pass.
            samples: The samples of these rows.
            aggregate: Rule over the targets.
        """
        not_finite, zero = unusual_rows(blocks())
        facts = unusual_targets(not_finite, zero, samples)
        groups = group_names(samples, self.config.task_column)
        vectors = target_directions(blocks(), aggregate, groups, leave_out=set(not_finite))
        return Directions(vectors, self.reliability(blocks(), groups, aggregate, {*not_finite, *zero}), facts)

    def _score_facts(self, context: SelectionContext) -> dict[str, str]:
        """What a score is."""
        return {"score": score_words(self.expected_targets(context)[0])}

    def _round(self, context: SelectionContext, scoring: Scoring, watch: Stopwatch) -> _Round:
        """A round by whole gradients, or by projected features."""
        return self._exact(context, watch) if scoring.exact else super()._round(context, scoring, watch)

    def _exact(self, context: SelectionContext, watch: Stopwatch) -> _Round:
        """A round by whole gradients."""
        config = self.config
        gradients = self.target_gradients(context, sketch_projector(config.seed), watch)
        with watch.phase(EVALUATION):
            compared = compare(
                context, gradients, task_column=config.task_column, seed=config.seed, description=EVALUATION
            )
        if context.ranks.is_main:
            self.say_reliability(compared.reliability)
        folder = self.work_dir(context) / "scores" / f"step-{context.step}"
        with watch.phase(TRAINING):
            sums = exact_sums(
                context,
                self.training_gradients(context, sketch_projector(config.seed)),
                compared.targets,
                folder,
                compared.facts,
                save_rows=config.save_interval,
                description=TRAINING,
            )
        with watch.phase("scores"):
            indices, scores = choose_exactly(sums, compared, context.num_samples, (config.seed, context.round))
            report_unusable(scores, context.train_dataset.samples)
        context.ranks.barrier()
        forget_others(folder)
        return indices, scores, compared.reliability, gradients.report(compared.unusual)
