"""What an answer is, and how it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        temperature: T > 0.
        max_new_tokens: Longest answer in tokens.
        top_k: Draw from the k likeliest tokens only (0: all of them).
        top_p: Draw from the smallest set of tokens with this probability (1: all of them).

    A truncated draw makes the policy gradient of pi_T = softmax(logits / T) a biased estimate.
    """

    temperature: float
    max_new_tokens: int
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is answered: an evaluation sample's id and the token ids of its prompt."""

    sample_id: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled answer.

    Attributes:
        sample_id: ``Sample.id`` of the evaluation sample.
        answer: Number m of the answer, from 0.
        token_ids: Sampled ids; the end token is included when it was sampled.
        log_probs: Log-probability of each token in the distribution it was drawn from, the same length: pi_T, scaled
            up to the tokens that top-k and top-p keep.
        finished: True when the end token was sampled, False when ``max_new_tokens`` cut the answer.
        text: The decoded answer, without special tokens.
        reward: Filled in by the reward backend; None if it could not be scored.
    """

    sample_id: str
    answer: int
    token_ids: list[int]
    log_probs: list[float]
    finished: bool
    text: str
    reward: float | None = None


def answer_key(seed: int, step: int, sample_id: str, answer: int) -> bytes:
    """16 bytes that seed the random numbers of one answer."""
    return hashlib.blake2b(f"{seed}\0{step}\0{sample_id}\0{answer}".encode(), digest_size=16).digest()


def rollout(
    sample_id: str,
    answer: int,
    tokens: list[int],
    log_probs: list[float],
    stop_token_ids: Collection[int],
    tokenizer: PreTrainedTokenizerBase,
) -> Rollout:
    """The answer that ends at the first stop token, or where the tokens end."""
    ends = [position for position, token in enumerate(tokens) if token in stop_token_ids]
    length = ends[0] + 1 if ends else len(tokens)
    ids = tokens[:length]
    text = tokenizer.decode(ids[:-1] if ends else ids, skip_special_tokens=True)
    return Rollout(sample_id, answer, ids, log_probs[:length], bool(ends), str(text))
