"""Selectors by gradient similarity: what they share.

A context comes in, the best candidates go out; a subclass of :class:`GradientSelector` says what the targets are.
May import ``gradients``, ``projection``, ``selectors.base``, ``selectors.plan`` and what they may.
"""

from dataflex.selectors.gradient.config import GradientConfig
from dataflex.selectors.gradient.report import target_note, with_candidates
from dataflex.selectors.gradient.selector import EVALUATION, TRAINING, GradientSelector
from dataflex.selectors.gradient.targets import Directions, TargetGradients, Targets, check_tasks, split_answered

__all__ = [
    "EVALUATION",
    "TRAINING",
    "Directions",
    "GradientConfig",
    "GradientSelector",
    "TargetGradients",
    "Targets",
    "check_tasks",
    "split_answered",
    "target_note",
    "with_candidates",
]
