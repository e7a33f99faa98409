"""The evaluation side of a round: what candidates are compared with, and which samples can be a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import SelectionError
from dataflex.gradients.features import GradientFeatures
from dataflex.gradients.reliability import Reliability
from dataflex.gradients.similarity import Aggregate
from dataflex.selectors.base import SelectionContext
from dataflex.types import Sample, group_names


@dataclass(frozen=True, slots=True)
class TargetGradients:
    """The gradients of the evaluation side, before anything is made of them.

    Attributes:
        features: Computes the raw gradients, or their features, of the items that the targets are made of.
        factors: Per target the factors of its items, which come target after target: the items' gradients, times these,
            add up to the target's.
        samples: The sample of each of the q targets.
        aggregate: Rule over the targets.
        report: Makes what the selection's report says about them of the ids of those that are not finite
            (``not_finite``) and zero (``zero``).
    """

    features: GradientFeatures
    factors: Sequence[Sequence[float]]
    samples: Sequence[Sample]
    aggregate: Aggregate
    report: Callable[[Mapping[str, Sequence[str]]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Targets:
    """The evaluation side of a round.

    Attributes:
        directions: ``(d, k)`` float64: a candidate's score is its largest inner product with one of them.
        aggregate: Rule over the targets.
        reliability: How far two halves of the targets agree.
        report: What the selection's report says about them.
    """

    directions: Tensor
    aggregate: Aggregate
    reliability: Reliability
    report: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Directions:
    """What candidates are compared with.

    Attributes:
        vectors: ``(d, k)`` float64.
        reliability: How far two halves of the targets agree.
        unusual: Ids of the targets that are not finite (left out) and zero (cosine 0).
    """

    vectors: Tensor
    reliability: Reliability
    unusual: dict[str, list[str]]


def split_answered(context: SelectionContext) -> tuple[list[int], list[str]]:
    """Positions of the evaluation samples that have a token with loss, and the ids of the others."""
    answered: list[int] = []
    without: list[str] = []
    for row, example in enumerate(context.eval_dataset or ()):
        # The first token is never predicted.
        if any(label != IGNORE_INDEX for label in example.labels[1:]):
            answered.append(row)
        else:
            without.append(example.sample.id)
    return answered, without


def check_tasks(samples: Sequence[Sample], column: str) -> None:
    """See that every target has a task, for ``aggregate: task_max``.

    Args:
        samples: The targets.
        column: That holds a sample's task.

    Raises:
        SelectionError: One has none.
    """
    groups = group_names(samples, column)
    without = [sample.id for sample, task in zip(samples, groups, strict=True) if task is None]
    if without:
        raise SelectionError(
            f"aggregate 'task_max' needs the column {column!r} in every evaluation sample; "
            f"{len(without)} have none, the first is {without[0]}",
            hint="name the column with task_column, or use aggregate: mean",
        )
