"""When the reference answers count: what ``reference_answer: auto`` comes to, and whether there is what it takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from dataflex.errors import SelectionError
from dataflex.selectors.nice.config import NiceConfig, ReferenceAnswer
from dataflex.types import Sample

logger = logging.getLogger(__name__)


def reference_rule(config: NiceConfig, samples: Sequence[Sample]) -> ReferenceAnswer:
    """What ``reference_answer: auto`` comes to: ``sample`` where there are references, else ``none``.

    Args:
        config: Parameters of NICE.
        samples: The evaluation set.
    """
    if config.reference_answer != "auto":
        return config.reference_answer
    replayed = config.replay_rewards
    if replayed is not None and not any((replayed / "rollouts").glob("step-*.references.jsonl")):
        return "none"  # that run did without
    return "sample" if any(sample.reference for sample in samples) else "none"


def check_answers(config: NiceConfig, samples: Sequence[Sample]) -> None:
    """See that there are references where they are asked for, and two answers where they are compared.

    Args:
        config: Parameters of NICE.
        samples: The evaluation set.

    Raises:
        SelectionError: There are not.
    """
    answered = sum(bool(sample.reference) for sample in samples)
    rule = reference_rule(config, samples)
    if rule != "none" and not answered:
        raise SelectionError(
            f"reference_answer {rule!r} needs reference answers, and no evaluation sample has one",
            hint="add answers to eval_dataset, or use reference_answer: none",
        )
    if config.baseline != "none" and config.mc_samples == 1 and rule == "none":
        raise SelectionError(
            f"baseline {config.baseline!r} compares the answers to a prompt, and with mc_samples 1 there is one alone",
            hint="mc_samples: 2 or more, reference answers in eval_dataset, or baseline: none",
        )
    if config.reference_answer == "auto":
        logger.info(
            "reference_answer: auto is %s here: %d of %d evaluation samples have a reference%s",
            rule,
            answered,
            len(samples),
            ", which counts as one more answer" if rule == "sample" else "",
        )
