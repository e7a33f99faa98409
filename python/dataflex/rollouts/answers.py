"""What an answer is, and how it is asked for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass

from transformers import PreTrainedTokenizerBase

from dataflex.data.problems import Problems
from dataflex.errors import DataError, RolloutError
from dataflex.types import Sample
from dataflex.utils.distributed import Ranks


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
    """What is answered.

    Attributes:
        sample_id: ``Sample.id`` of the evaluation sample.
        token_ids: Token ids of its prompt.
        repeat: Number of earlier samples with this id: samples that share an id draw answers of their own.
    """

    sample_id: str
    token_ids: list[int]
    repeat: int = 0


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


def prompts_of(samples: Sequence[Sample], token_ids: Callable[[Sample], list[int]]) -> list[Prompt]:
    """The prompts of evaluation samples, row by row; ids may repeat.

    Args:
        samples: The whole evaluation set: a part of it would count other repeats.
        token_ids: Renders a sample's prompt.

    Raises:
        DataError: Prompts cannot be rendered; all of them are counted.
    """
    seen: Counter[str] = Counter()
    problems = Problems()
    prompts = []
    for sample in samples:
        try:
            prompts.append(Prompt(sample.id, token_ids(sample), seen[sample.id]))
        except DataError as error:
            problems.add(f"sample {sample.id!r} (row {sample.row})", error)
        seen[sample.id] += 1
    problems.raise_if_any(f"the prompts of COUNT of {len(samples):,} evaluation samples cannot be rendered:")
    return prompts


def answer_key(seed: int, step: int, prompt: Prompt, answer: int) -> bytes:
    """16 bytes that seed the random numbers of one answer."""
    repeat = f"\0{prompt.repeat}" if prompt.repeat else ""
    return hashlib.blake2b(f"{seed}\0{step}\0{prompt.sample_id}\0{answer}{repeat}".encode(), digest_size=16).digest()


def by_row(answers: Sequence[Rollout], ids: Sequence[str]) -> list[list[Rollout]]:
    """The M answers of each row of the evaluation set.

    Rows are told by the order of the answers, never by their ids, which a dataset made by hand may repeat.

    Args:
        answers: q * M answers, ordered by row, then by answer number.
        ids: The ids of the q rows.

    Raises:
        RolloutError: The answers are not M to each of these rows in their order.
    """
    count = len(answers) // len(ids) if ids else 0
    expected = [(sample_id, number) for sample_id in ids for number in range(count)]
    if [(answer.sample_id, answer.answer) for answer in answers] != expected:
        got = ", ".join(answer.sample_id for answer in answers[:5])
        raise RolloutError(
            f"expected as many answers to each of the {len(ids)} rows of the evaluation set, in their order "
            f"({', '.join(ids[:5])}, ...); got {len(answers)}, to {got}, ..."
        )
    return [list(answers[row * count : (row + 1) * count]) for row in range(len(ids))]


def gather_answers(own: Sequence[Rollout], prompts: Sequence[Prompt], ranks: Ranks) -> list[Rollout]:
    """The answers to all prompts, of which each rank has drawn those to its share (``ranks.share(prompts)``).

    Args:
        own: This rank's answers, ordered by prompt, then by answer number.
        prompts: All prompts.
        ranks: The processes that share them.

    Returns:
        Answers ordered by prompt, then by answer number, on every rank.
    """
    ids = [prompt.sample_id for prompt in prompts]
    parts = [
        iter(by_row([Rollout(**fields) for fields in part], ids[rank :: ranks.count]))
        for rank, part in enumerate(ranks.gather([asdict(answer) for answer in own]))
    ]
    return [answer for row in range(len(prompts)) for answer in next(parts[row % ranks.count])]


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
