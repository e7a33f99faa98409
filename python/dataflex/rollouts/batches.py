"""Which answers are drawn together.

Answers of a batch should be those that each would be alone. Models that read the padding of shorter prompts as if it
were text (recurrent ones that ignore the attention mask) need prompts of equal length, and a few mix the rows of a
batch up and need batches of one. A probe tells before answers are drawn: the first tokens of the shortest prompt of
the batch where lengths differ most, drawn alone and beside the longest. Where rotary frequencies depend on length
(:mod:`dataflex.models.rope`), a batch has those of one horizon.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np
from torch import nn

from dataflex.models.model import base_model
from dataflex.models.rope import length_class, scaled_rotaries
from dataflex.rollouts.answers import Prompt, Rollout

logger = logging.getLogger(__name__)

Job = tuple[Prompt, int]
"""A prompt and the number of its answer."""
Probe = Callable[[Sequence[Job], int], Rollout]
"""Draws a few tokens of the answers of a batch at a horizon, in float32, and returns the first of them."""

SHARING = (
    "",
    "reads the padding of shorter prompts: only prompts of equal length share a batch of answers",
    "mixes up the rows of a batch when it answers: answers are drawn one at a time",
)
"""How far answers may share batches, and what is said about it."""
TOLERANCE = 1e-4
"""Largest difference of a token's log-probability in company; rounding in float32 is far below it."""


def shared_batches(
    model: nn.Module, jobs: Sequence[Job], max_new_tokens: int, batch_size: int, probe: Probe
) -> list[list[int]]:
    """Numbers of the jobs of each batch: neighbours in length, as many as the model allows, which is said.

    Args:
        model: The policy.
        jobs: What is drawn.
        max_new_tokens: Longest answer.
        batch_size: Most jobs of a batch.
        probe: Draws a few tokens.
    """
    batches = _planned(model, jobs, max_new_tokens, batch_size, sharing=0)
    sharing = 0
    while sharing < len(SHARING) - 1 and not _as_alone(jobs, batches, max_new_tokens, probe):
        sharing += 1
        batches = _planned(model, jobs, max_new_tokens, batch_size, sharing)
    if sharing:
        logger.warning("%s %s, which takes longer", type(base_model(model)).__name__, SHARING[sharing])
    return batches


def _planned(
    model: nn.Module, jobs: Sequence[Job], max_new_tokens: int, batch_size: int, sharing: int
) -> list[list[int]]:
    rotaries = scaled_rotaries(model)
    lengths = [len(prompt.token_ids) for prompt, _ in jobs]

    def kind(job: int) -> tuple[tuple[int, ...], int]:
        return length_class(rotaries, lengths[job] + max_new_tokens), lengths[job] if sharing else 0

    order = sorted(range(len(jobs)), key=lambda job: (kind(job), lengths[job]))
    most = 1 if sharing == len(SHARING) - 1 else batch_size
    runs = [list(run) for _, run in groupby(order, key=kind)]
    return [run[start : start + most] for run in runs for start in range(0, len(run), most)]


def _as_alone(jobs: Sequence[Job], batches: Sequence[Sequence[int]], max_new_tokens: int, probe: Probe) -> bool:
    """Whether the first answer of the batch where lengths differ most starts as it does alone."""
    shared = [(jobs[batch[0]], jobs[batch[-1]]) for batch in batches if len(batch) > 1]
    if not shared:
        return True
    short, long = max(shared, key=lambda pair: len(pair[1][0].token_ids) - len(pair[0][0].token_ids))
    horizon = len(long[0].token_ids) + max_new_tokens
    alone, beside = probe([short], horizon), probe([short, long], horizon)
    return alone.token_ids == beside.token_ids and bool(
        np.allclose(alone.log_probs, beside.log_probs, rtol=0, atol=TOLERANCE)
    )
