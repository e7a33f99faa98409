"""The reference answers of an evaluation set as if the model had given them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.data.templates import ChatTemplate
from dataflex.rollouts.answers import Rollout
from dataflex.types import Sample

WHOLE = 1 << 30
"""A cutoff in tokens that cuts nothing."""


def reference_rollouts(
    samples: Sequence[Sample], template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int
) -> list[Rollout]:
    """The reference answer of each sample, not yet scored, in the tokens that training would put loss on.

    They were not drawn from the model, so they have no log-probabilities.

    Args:
        samples: Samples with a reference.
        template: Renders them; the end of the turn belongs to the answer.
        tokenizer: Turns an answer that was cut back into text.
        max_new_tokens: A longer answer loses its end, as a sampled one would, and is scored as what is left of it: else
            two answers of the same tokens could earn different rewards.
    """
    rollouts = []
    for sample, encoded in zip(samples, template.encode_batch([_last_turn(s) for s in samples], WHOLE), strict=True):
        ids = _last_span(encoded.input_ids, encoded.labels)
        cut = ids[:max_new_tokens]
        whole = len(cut) == len(ids)
        text = sample.reference or "" if whole else str(tokenizer.decode(cut, skip_special_tokens=True))
        rollouts.append(Rollout(sample.id, 0, cut, [], whole, text))
    return rollouts


def _last_turn(sample: Sample) -> Sample:
    """The conversation up to its last answer, which carries loss whatever its ``train`` says."""
    *before, answer = sample.messages[: len(sample.prompt) + 1]
    return replace(sample, messages=(*before, {**answer, "train": True}))


def _last_span(input_ids: Sequence[int], labels: Sequence[int]) -> list[int]:
    """The token ids of the last run of labels."""
    end = max((place for place, label in enumerate(labels) if label != IGNORE_INDEX), default=-1) + 1
    start = end
    while start > 0 and labels[start - 1] != IGNORE_INDEX:
        start -= 1
    return list(input_ids[start:end])
