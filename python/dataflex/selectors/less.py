"""LESS: training gradients, as Adam would step on them, against the gradients of target examples.

Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning" (arXiv 2402.04333). A candidate's feature
is phi_i = P u_i with its Adam-normalised loss gradient u_i, a target's is phi_j = P g_j with the plain gradient of its
reference answer, and the score of a candidate is

    s_i = max over tasks D of (1 / |D|) sum_{j in D} cos(phi_i, phi_j).

This selector is the dynamic form: it looks at one state of the model, the current one.
:func:`dataflex.less_static` is the form of the paper, a weighted sum over several checkpoints.

Deviations: Adam normalisation is by default the step of torch's AdamW (``adam_variant: less`` is the paper's); an
evaluation set without tasks is one task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from dataflex.errors import SelectionError
from dataflex.gradients.similarity import Aggregate
from dataflex.projection.projector import Projector
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.gradient import (
    EVALUATION,
    GradientConfig,
    GradientSelector,
    TargetGradients,
    check_tasks,
    split_answered,
    target_note,
)
from dataflex.selectors.plan import Plan
from dataflex.types import Sample, group_names
from dataflex.utils.progress import Stopwatch


class LessConfig(GradientConfig):
    """Parameters of LESS."""

    aggregate: Aggregate | Literal["auto"] = Field(
        "auto", description="rule over the evaluation samples; auto: task_max if every one has a task, else mean"
    )


class LessSelector(GradientSelector[LessConfig]):
    """Selects the candidates whose optimizer step lowers the loss on the evaluation set's answers most.

    Evaluation samples without a reference answer are left out and named.

    Source: Xia et al., LESS: Selecting Influential Data for Targeted Instruction Tuning, arXiv 2402.04333.

    Example:
        >>> selector = LessSelector(proj_dim=4096, features_dtype="bfloat16")
    """

    name: ClassVar[str] = "less"
    Config = LessConfig

    def check(self, context: SelectionContext) -> None:
        """Check projection, optimizer, reference answers and tasks before training starts.

        Raises:
            SelectionError: One of them does not allow a selection; the hint says what to do.
        """
        super().check(context)
        answered, _ = split_answered(context)
        if not answered:
            raise SelectionError(
                "LESS compares with reference answers, and no evaluation sample has one",
                hint="add answers to eval_dataset, or use nice, which needs none",
            )
        assert context.eval_dataset is not None
        if self.config.aggregate == "task_max":
            samples = [context.eval_dataset[row].sample for row in answered]
            check_tasks(samples, self.config.task_column)

    def plan(self, context: SelectionContext) -> Plan:
        """Gradients of all candidates and of the reference answers."""
        features, dataset = self.reference_gradients(context, self.projector_for(self.scoring(context)))
        plan = super().plan(context)
        parts = [*plan.parts, self.planned(context, EVALUATION, features, dataset.lengths)]
        rule, column = self.aggregate_rule(dataset.samples), self.config.task_column
        note = target_note(dataset.samples, "reference answers", rule, column)
        return replace(plan, parts=parts, notes=[*plan.notes, note])

    def target_gradients(self, context: SelectionContext, projector: Projector, watch: Stopwatch) -> TargetGradients:
        """Gradients of the reference answers.

        Raises:
            SelectionError: No evaluation sample has a reference answer.
        """
        del watch
        features, dataset = self.reference_gradients(context, projector)
        samples = dataset.samples
        aggregate = self.aggregate_rule(samples)

        def report(unusual: Mapping[str, Sequence[str]]) -> dict[str, Any]:
            return target_report(len(context.eval_dataset or ()), len(samples), unusual, aggregate)

        return TargetGradients(features, [[1.0]] * len(samples), samples, aggregate, report)

    def expected_targets(self, context: SelectionContext) -> tuple[Aggregate, Sequence[Sample]]:
        """The rule over the samples that have a reference answer.

        Args:
            context: The selection's context.

        Returns:
            The rule, and the samples that can be a target.
        """
        answered, _ = split_answered(context)
        samples = [context.eval_dataset[row].sample for row in answered] if context.eval_dataset else []
        return self.aggregate_rule(samples), samples

    def aggregate_rule(self, samples: Sequence[Sample]) -> Aggregate:
        """The configured rule; ``auto`` becomes ``task_max`` where all ``samples`` have a task, else ``mean``."""
        if self.config.aggregate != "auto":
            return self.config.aggregate
        return "mean" if None in group_names(samples, self.config.task_column) else "task_max"


def target_report(
    total: int, answered: int, unusual: Mapping[str, Sequence[str]], aggregate: Aggregate
) -> dict[str, Any]:
    """What the report says about the targets.

    Args:
        total: Evaluation samples.
        answered: Those with a reference answer.
        unusual: Ids of those whose gradient is not finite (``not_finite``) or zero (``zero``).
        aggregate: Rule over the targets.
    """
    return {
        "targets": {"total": total, "answered": answered, **unusual},
        "aggregate": aggregate,
        "left_out": {
            "targets without an answer": total - answered,
            "targets with a gradient that is not finite": len(unusual["not_finite"]),
        },
    }
