"""Features of evaluation prompts: phi_x = P g_x of the policy gradient of their weighted answers.

    g_x = grad( -(1 / M) sum_m w_m sum_t log softmax(logits_mt / T)[y_mt] )

(:func:`dataflex.gradients.plain.policy_gradient`). Several prompts with their answers make one padded batch, a row an
answer, with one forward and one backward pass; the rows of a prompt are summed where their gradients arise. Answers of
weight zero add nothing and are left out. Evaluation gradients are never Adam-normalised.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dataflex.data.collate import Batch
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import GradientError
from dataflex.gradients.context import GradientContext
from dataflex.gradients.features import GradientFeatures, Work
from dataflex.gradients.memory import BatchTokens
from dataflex.gradients.plain import policy_gradient
from dataflex.gradients.reliability import paired_reliability
from dataflex.gradients.similarity import Blocks
from dataflex.models.fingerprint import fingerprint, state_fingerprint
from dataflex.models.losses import label_log_probs
from dataflex.projection.projector import Projector

PROMPTS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class WeightedPrompt:
    """A prompt with its M answers.

    Attributes:
        row: The prompt's place in the evaluation set.
        prompt_ids: Token ids of the prompt x.
        answers: M lists of sampled token ids, each with at least one token.
        weights: M weights w_m, not all zero.
        horizon: Tokens that prompt and answer might have when the answers were drawn, which fixes rotary frequencies
            that depend on length; None: those of the longest answer.
    """

    row: int
    prompt_ids: list[int]
    answers: list[list[int]]
    weights: list[float]
    horizon: int | None = None

    @property
    def length(self) -> int:
        """The length that the frequencies are those of."""
        return max(len(self.prompt_ids) + max(map(len, self.answers)), self.horizon or 0)


def halves(prompt: WeightedPrompt) -> list[tuple[WeightedPrompt, float]]:
    """The prompt with every other one of its weighted answers, and with the rest; whole where only one has a weight.

    Returns:
        Each half with its factor: the features of the halves, times their factors, add up to the prompt's.
    """
    weighted = [number for number, weight in enumerate(prompt.weights) if weight]
    parts = [part for part in (weighted[::2], weighted[1::2]) if part]
    return [
        (
            replace(
                prompt,
                answers=[prompt.answers[number] for number in part],
                weights=[prompt.weights[number] for number in part],
            ),
            len(part) / len(prompt.answers),
        )
        for part in parts
    ]


def rejoined(blocks: Blocks, factors: Sequence[Sequence[float]]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Features of prompts from those of their halves, which stream by.

    Args:
        blocks: Features of all halves, in the order of the prompts.
        factors: Factors of each prompt's halves.

    Yields:
        ``(number, (k,) of the prompt, (h, k) of its h halves)``, float64.
    """
    waiting: list[Tensor] = []
    number = 0
    for _, features in blocks:
        for row in features.to(torch.float64):
            waiting.append(row)
            if len(waiting) == len(factors[number]):
                rows = torch.stack(waiting)
                yield number, torch.tensor(factors[number], dtype=torch.float64) @ rows, rows
                waiting, number = [], number + 1


def whole_rows(blocks: Blocks, factors: Sequence[Sequence[float]]) -> Blocks:
    """Features of prompts, :data:`PROMPTS_AT_ONCE` a block in float64; arguments as for :func:`rejoined`."""
    gathered: list[Tensor] = []
    start = 0
    for number, feature, _ in rejoined(blocks, factors):
        gathered.append(feature)
        if len(gathered) == PROMPTS_AT_ONCE or number + 1 == len(factors):
            yield start, torch.stack(gathered)
            start, gathered = number + 1, []


def halves_agreement(blocks: Blocks, factors: Sequence[Sequence[float]]) -> float | None:
    """Cosine between the mean directions of the prompts' halves; None if no prompt has two. See :func:`rejoined`."""
    return paired_reliability(rows for _, _, rows in rejoined(blocks, factors) if len(rows) == 2)


class PolicyFeatures(GradientFeatures):
    """Computes features of weighted prompts in the model's current state.

    Args:
        context: Model, optimizer and processes as they are now.
        prompts: The prompts.
        projector: P.
        temperature: Sampling temperature T.
        batch_tokens: Most padded tokens b x t of one batch, or ``auto``; a single larger prompt is a batch of its own.

    Raises:
        GradientError: A prompt without a weight other than zero, or with an empty answer.
    """

    def __init__(
        self,
        context: GradientContext,
        prompts: Sequence[WeightedPrompt],
        projector: Projector,
        *,
        temperature: float,
        batch_tokens: BatchTokens,
    ) -> None:
        super().__init__(context, projector, adam=None, batch_tokens=batch_tokens)
        for prompt in prompts:
            if not any(prompt.weights) or not all(prompt.answers):
                raise GradientError(f"prompt {prompt.row}: every weight is zero, or an answer has no token")
        self._prompts = prompts
        self._temperature = temperature

    def __len__(self) -> int:
        return len(self._prompts)

    def facts(self) -> dict[str, Any]:
        """State of the model, prompts with their answers and weights, temperature."""
        content = [
            (prompt.row, prompt.prompt_ids, prompt.answers, prompt.weights, *self._length_class(item))
            for item, prompt in enumerate(self._prompts)
        ]
        return {
            "state": state_fingerprint(self._model, self._context.autocast),
            "prompts": fingerprint(content),
            "temperature": self._temperature,
        }

    def _rows(self, item: int) -> int:
        return len(_weighted_answers(self._prompts[item]))

    def _find_lengths(self) -> NDArray[np.int64]:
        longest = [max(len(answer) for answer, _ in _weighted_answers(prompt)) for prompt in self._prompts]
        return np.array([len(prompt.prompt_ids) for prompt in self._prompts]) + np.array(longest, np.int64)

    def _horizon(self, item: int) -> int:
        return self._prompts[item].length

    def _work(self, items: Sequence[int]) -> Work:
        prompts = [self._prompts[item] for item in items]
        batch, weights = policy_batch(prompts, int(self._context.tokenizer.pad_token_id))
        batch, weights = batch.to(self._device), weights.to(self._device)
        horizon = max(prompt.length for prompt in prompts)

        def losses() -> Tensor:
            with self._autocast():
                totals, _ = label_log_probs(self._model, batch, self._temperature, horizon=horizon)
            return -weights.to(totals.dtype) * totals

        return Work(len(weights), losses, [self._rows(item) for item in items])

    def _plain(self, item: int) -> Tensor:
        prompt = self._prompts[item]
        return policy_gradient(
            self._model,
            prompt.prompt_ids,
            prompt.answers,
            prompt.weights,
            temperature=self._temperature,
            horizon=prompt.length,
            autocast=self._autocast,
        ).float()


def policy_batch(prompts: Sequence[WeightedPrompt], pad_token_id: int) -> tuple[Batch, Tensor]:
    """All answers with a weight as rows of one batch, prompt by prompt.

    Returns:
        The batch, with the answers' tokens as labels, and ``(b,)`` float64 weights w_m / M.
    """
    rows = [
        (prompt.prompt_ids, answer, weight / len(prompt.answers))
        for prompt in prompts
        for answer, weight in _weighted_answers(prompt)
    ]
    width = max(len(prompt_ids) + len(answer) for prompt_ids, answer, _ in rows)
    input_ids = torch.full((len(rows), width), pad_token_id, dtype=torch.int64)  # (b, t)
    attention_mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for row, (prompt_ids, answer, _) in enumerate(rows):
        start, end = len(prompt_ids), len(prompt_ids) + len(answer)
        input_ids[row, :end] = torch.tensor([*prompt_ids, *answer])
        attention_mask[row, :end] = 1
        labels[row, start:end] = torch.tensor(answer)
    weights = torch.tensor([weight for *_, weight in rows], dtype=torch.float64)
    return Batch(input_ids, attention_mask, labels), weights


def _weighted_answers(prompt: WeightedPrompt) -> list[tuple[list[int], float]]:
    return [(answer, weight) for answer, weight in zip(prompt.answers, prompt.weights, strict=True) if weight]
