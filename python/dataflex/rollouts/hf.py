"""Answers drawn by transformers' ``generate``.

An answer is drawn token by token from pi_T = softmax(logits / T). The draw inverts the cumulative distribution at one
uniform number a token, and every answer has its own stream of uniforms, seeded by (seed, step, sample id, answer
number): an answer does not depend on which others share its batch, nor on their order, beyond the rounding of the
model's own batched arithmetic. Prompts of similar length, and the answers of one prompt, share a batch.

Shorter prompts of a batch are padded on the left, where the model allows it (:mod:`dataflex.rollouts.batches`). A few
answers are computed again in one pass, as their gradients will be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from dataflex.models.model import base_model, undisturbed
from dataflex.models.rope import growing_to
from dataflex.models.wide import in_float32
from dataflex.rollouts.answers import Prompt, Rollout, Sampling, answer_key, rollout
from dataflex.rollouts.batches import Job, shared_batches
from dataflex.rollouts.comparison import compare_answers
from dataflex.types import Autocast
from dataflex.utils.progress import progress_bar

PROBED_TOKENS = 3
"""From the second on a token depends on what the model keeps of the others."""


def sample_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    answers_per_prompt: int,
    stop_token_ids: set[int],
    seed: int,
    step: int,
    batch_size: int,
    autocast: Autocast,
    show_progress: bool = True,
) -> list[Rollout]:
    """Draw ``answers_per_prompt`` answers of every prompt.

    Args:
        model: The policy in its current state; left undisturbed.
        tokenizer: Decodes answers; its padding token fills batches.
        prompts: q prompts.
        sampling: Distribution and length.
        answers_per_prompt: M.
        stop_token_ids: Tokens that end an answer.
        seed: Seed of the streams, together with ``step``.
        step: Optimizer steps taken.
        batch_size: Answers drawn at once; prompts of similar length share a batch.
        autocast: The trainer's forward context.
        show_progress: Show a progress bar.

    Returns:
        q * M answers, ordered by prompt, then by answer number.

    Raises:
        RolloutError: The answers are not as likely as they are in one pass over prompt and answer.
    """
    jobs = [(prompt, answer) for prompt in prompts for answer in range(answers_per_prompt)]
    found: dict[int, Rollout] = {}
    with undisturbed(model), neutral_generation(model), torch.no_grad():
        probe = partial(_probe, model, tokenizer, min(PROBED_TOKENS, sampling.max_new_tokens))
        batches = shared_batches(model, jobs, sampling.max_new_tokens, batch_size, probe)
        with autocast(), progress_bar(len(jobs), "sampling answers", unit="answer", disable=not show_progress) as bar:
            for chosen in batches:
                batch = [jobs[job] for job in chosen]
                streams = [answer_stream(seed, step, prompt, answer) for prompt, answer in batch]
                horizon = max(len(prompt.token_ids) for prompt, _ in batch) + sampling.max_new_tokens
                drawn = _draw_batch(model, tokenizer, batch, sampling, stop_token_ids, streams, horizon)
                found.update(zip(chosen, drawn, strict=True))
                bar.update(len(batch))
    answers = [found[job] for job in range(len(jobs))]
    compare_answers(
        model,
        [prompt for prompt, _ in jobs],
        answers,
        sampling,
        autocast,
        drawn_by="generate",
        hint="this model's step-by-step answers are not those of one pass over the text, whose gradient is taken: use "
        "a selector that draws no answers (less, loss), or rollout_backend: vllm",
    )
    return answers


def answer_stream(seed: int, step: int, prompt: Prompt, answer: int) -> np.random.Generator:
    """The uniform numbers of one answer: a Philox generator keyed by its arguments."""
    key = np.frombuffer(answer_key(seed, step, prompt, answer), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


@contextmanager
def neutral_generation(model: nn.Module) -> Iterator[None]:
    """Hide the model's own generation defaults (repetition penalty, truncation, ...): ``generate`` would merge them."""
    target: Any = base_model(model)
    own = target.generation_config
    target.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        target.generation_config = own


class InverseTransformSampler(LogitsProcessor):
    """Turns ``generate``'s greedy search into sampling from softmax(logits / T) with given uniform numbers.

    Every step keeps one token a row: the first whose cumulative probability exceeds the row's uniform number. Its
    log-probability under the distribution that was sampled is recorded.

    Args:
        sampling: Temperature and truncation.
        uniforms: ``(b, max_new_tokens)`` float64 in [0, 1).
    """

    def __init__(self, sampling: Sampling, uniforms: NDArray[np.float64]) -> None:
        self.sampling = sampling
        self.uniforms = torch.from_numpy(uniforms)
        self.log_probs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Replace ``scores`` ``(b, vocabulary)`` by one that is -inf everywhere but at the drawn token."""
        full = torch.log_softmax(scores.double() / self.sampling.temperature, dim=-1)
        kept = truncated(full, self.sampling)
        cumulative = kept.exp().cumsum(dim=-1)
        uniform = self.uniforms[:, len(self.log_probs)].to(scores.device)
        # Scaling by the last sum keeps the draw below it whatever the rounding of the cumulative sum.
        threshold = (uniform * cumulative[:, -1]).unsqueeze(1)
        token = torch.searchsorted(cumulative, threshold, right=True).clamp_max(scores.shape[-1] - 1)
        self.log_probs.append((kept.gather(1, token) - cumulative[:, -1:].log()).squeeze(1).cpu())
        return torch.full_like(scores, float("-inf")).scatter_(1, token, 0.0)


def truncated(log_probs: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities ``(b, vocabulary)`` with tokens outside top-k / top-p at -inf, not renormalised."""
    kept = log_probs
    if sampling.top_k > 0:
        threshold = log_probs.topk(min(sampling.top_k, log_probs.shape[-1]), dim=-1).values[:, -1:]
        kept = kept.masked_fill(kept < threshold, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = kept.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(dim=-1) - ordered.exp()
        outside = before >= sampling.top_p * kept.exp().sum(dim=-1, keepdim=True)
        kept = kept.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), float("-inf"))
    return kept


def _probe(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, tokens: int, batch: Sequence[Job], horizon: int
) -> Rollout:
    """The first tokens of the first answer of a batch, in float32."""
    streams = [answer_stream(0, 0, prompt, answer) for prompt, answer in batch]
    with in_float32(model):
        return _draw_batch(model, tokenizer, batch, Sampling(1.0, tokens), set(), streams, horizon)[0]


def _draw_batch(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[Job],
    sampling: Sampling,
    stop_token_ids: set[int],
    streams: Sequence[np.random.Generator],
    horizon: int,
) -> list[Rollout]:
    device = next(model.parameters()).device
    width = max(len(prompt.token_ids) for prompt, _ in batch)
    input_ids = torch.full((len(batch), width), int(tokenizer.pad_token_id), dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, (prompt, _) in enumerate(batch):
        input_ids[row, width - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
        attention_mask[row, width - len(prompt.token_ids) :] = 1
    sampler = InverseTransformSampler(
        sampling, np.stack([stream.random(sampling.max_new_tokens) for stream in streams])
    )
    with growing_to(model, horizon):
        generated = model.generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False,
                max_new_tokens=sampling.max_new_tokens,
                eos_token_id=sorted(stop_token_ids) or None,
                pad_token_id=tokenizer.pad_token_id,
            ),
            logits_processor=LogitsProcessorList([sampler]),
        )
    tokens = generated[:, width:].tolist()
    log_probs = torch.stack(sampler.log_probs, dim=1).tolist()
    return [
        rollout(prompt.sample_id, answer, row_tokens, row_log_probs, stop_token_ids, tokenizer)
        for (prompt, answer), row_tokens, row_log_probs in zip(batch, tokens, log_probs, strict=True)
    ]
