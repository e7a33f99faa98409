"""Selectors by gradient similarity: what they share.

A context comes in, the best candidates go out; a subclass of :class:`GradientSelector` says what the targets are,
one of :class:`FeatureSelector` makes their directions itself.
May import ``gradients``, ``projection``, ``selectors.base``, ``selectors.plan`` and what they may.
"""

from dataflex.selectors.gradient.config import GradientConfig
from dataflex.selectors.gradient.report import target_note, with_candidates
from dataflex.selectors.gradient.selector import FeatureSelector, GradientSelector
from dataflex.selectors.gradient.sides import EVALUATION, TRAINING, GradientSides
from dataflex.selectors.gradient.targets import Directions, TargetGradients, Targets, check_tasks, split_answered

__all__ = [
    "EVALUATION",
    "TRAINING",
    "Directions",
    "FeatureSelector",
    "GradientConfig",
    "GradientSelector",
    "GradientSides",
    "TargetGradients",
    "Targets",
    "check_tasks",
    "split_answered",
    "target_note",
    "with_candidates",
]
