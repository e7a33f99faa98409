"""LESS over several checkpoints: the weighted sum of their influences (arXiv 2402.04333)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dataflex.errors import SelectionError
from dataflex.gradients.reliability import Reliability
from dataflex.gradients.similarity import Influence, report_broken, target_directions, unusual_rows
from dataflex.gradients.store import FeatureStore
from dataflex.offline.checkpoints import open_checkpoint
from dataflex.offline.context import at_checkpoint
from dataflex.projection.projector import Projector
from dataflex.selectors.base import Selection, SelectionContext
from dataflex.selectors.gradient import with_candidates
from dataflex.selectors.less import LessSelector, target_report
from dataflex.types import Sample, group_names
from dataflex.utils.progress import Stopwatch


@dataclass(frozen=True, slots=True)
class _State:
    """Features of both sides at one checkpoint."""

    step: int
    train: FeatureStore
    evaluation: FeatureStore
    samples: Sequence[Sample]


def score_checkpoints(
    selector: LessSelector,
    context: SelectionContext,
    checkpoints: Sequence[Path],
    learning_rates: Sequence[float] | None,
) -> Selection:
    """The selection of :func:`dataflex.less_static`.

    Args:
        selector: Parameters of both sides' features.
        context: Context of a selection without an optimizer.
        checkpoints: Folders that the trainer wrote.
        learning_rates: One a checkpoint; None: what their runs have logged.
    """
    if selector.config.scoring == "exact":
        raise SelectionError(
            "less_static sums over several states of the model, whose features it compares: it has no exact scores",
            hint="scoring: projected, or select with less at one checkpoint",
        )
    weights = _weights(checkpoints, learning_rates)
    _check(selector, context, checkpoints)
    watch = Stopwatch()
    with at_checkpoint(context, checkpoints[-1], needs_optimizer=False) as current:
        left = selector.narrowed(current)
    context = replace(context, train_dataset=left.context.train_dataset)
    projector = selector.projector()
    states: list[_State] = []
    for directory in checkpoints:
        with at_checkpoint(context, directory, needs_optimizer=selector.config.gradient_type == "adam") as current:
            states.append(_features(selector, current, projector, watch))
    with watch.phase("scores"):
        parts, reliability, facts = _compare(selector, states, weights, len(context.eval_dataset or ()))
        if context.ranks.is_main:
            selector.say_reliability(reliability)
        indices, scores = selector.ranked(context, parts, facts["aggregate"])
    if selector.config.keep_features == "none":
        context.ranks.barrier()  # all have read what is removed now
        if context.ranks.is_main:
            shutil.rmtree(selector.work_dir(context) / "features")
    report = {
        "seconds": watch.seconds,
        "reliability": reliability.facts(),
        **with_candidates(facts, scores),
        "checkpoints": [
            {"path": str(directory), "step": state.step, "weight": weight}
            for directory, state, weight in zip(checkpoints, states, weights, strict=True)
        ],
    }
    return left.widened(Selection(indices, scores.values, "less_static", states[-1].step, 1, report))


def _check(selector: LessSelector, context: SelectionContext, checkpoints: Sequence[Path]) -> None:
    """Load each checkpoint once before hours go into the features of the first."""
    steps: set[int] = set()
    for directory in checkpoints:
        with at_checkpoint(context, directory, needs_optimizer=selector.config.gradient_type == "adam") as current:
            if current.step in steps:
                raise SelectionError(
                    f"{directory}: another checkpoint has taken {current.step} steps, too",
                    hint="one checkpoint a step; one of save_only_model is told by its folder's name, checkpoint-STEP",
                )
            steps.add(current.step)
            selector.check(current)


def _compare(
    selector: LessSelector, states: Sequence[_State], weights: Sequence[float], total: int
) -> tuple[Callable[[], list[Influence]], Reliability, dict[str, Any]]:
    """What candidates are compared with, its reliability at the last checkpoint, and a report on ``total`` targets."""
    samples = states[0].samples
    unusual = [unusual_rows(state.evaluation.blocks()) for state in states]
    # A target that is broken at one checkpoint would leave another mean there: it is left out of all of them.
    broken = sorted({row for not_finite, _ in unusual for row in not_finite})
    zero = sorted({row for _, rows in unusual for row in rows})
    ids = {"not_finite": [samples[row].id for row in broken], "zero": [samples[row].id for row in zero]}
    report_broken("evaluation", ids["not_finite"])
    aggregate = selector.aggregate_rule(samples)
    directions = [_directions(selector, state.evaluation, samples, broken) for state in states]

    def parts() -> list[Influence]:
        return [
            Influence(state.train.blocks(), vectors, weight)
            for state, vectors, weight in zip(states, directions, weights, strict=True)
        ]

    groups = group_names(samples, selector.config.task_column)
    last = selector.reliability(states[-1].evaluation.blocks(), groups, aggregate, {*broken, *zero})
    return parts, last, target_report(total, len(samples), ids, aggregate)


def _directions(
    selector: LessSelector, evaluation: FeatureStore, samples: Sequence[Sample], leave_out: Collection[int]
) -> Tensor:
    """Directions ``(d, k)`` of the targets at one checkpoint."""
    groups = group_names(samples, selector.config.task_column)
    return target_directions(evaluation.blocks(), selector.aggregate_rule(samples), groups, leave_out=set(leave_out))


def _features(selector: LessSelector, context: SelectionContext, projector: Projector, watch: Stopwatch) -> _State:
    with watch.phase("evaluation gradients"):
        evaluation, samples = selector.reference_features(context, projector)
        not_finite, _ = unusual_rows(evaluation.blocks())
        # Without a direction there is an error here, before the candidates' gradients.
        _directions(selector, evaluation, samples, not_finite)
    with watch.phase("training gradients"):
        train = selector.training_features(context, projector)
    return _State(context.step, train, evaluation, samples)


def _weights(checkpoints: Sequence[Path], learning_rates: Sequence[float] | None) -> list[float]:
    """eta_i, with a sum of one."""
    if not checkpoints:
        raise SelectionError("there are no checkpoints to score with")
    rates = (
        [open_checkpoint(path).logged_rate() for path in checkpoints]
        if learning_rates is None
        else list(learning_rates)
    )
    if len(rates) != len(checkpoints):
        raise SelectionError(f"there are {len(checkpoints)} checkpoints and {len(rates)} learning rates")
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates) or sum(rates) == 0:
        raise SelectionError(f"learning rates must be at least 0 and not all 0, got {rates}")
    return [rate / sum(rates) for rate in rates]
