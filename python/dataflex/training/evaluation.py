"""How good a model is on an evaluation set: its loss on the reference answers, and a metric of its own answers.

The loss is the mean cross-entropy over all label tokens (nats). For the metric the model answers every prompt greedily
and the reward backend ``metric`` scores the answers; the prompts are rendered as in training. The ranks share the work,
and all of them get the outcome for every sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from dataflex.config.values import LOSS, metric_key
from dataflex.data.collate import collate
from dataflex.data.dataset import TokenizedDataset
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.data.templates import ChatTemplate
from dataflex.errors import TrainingError
from dataflex.models.losses import label_log_probs
from dataflex.models.model import undisturbed
from dataflex.rewards.base import RewardBackend
from dataflex.rewards.metric import MetricReward
from dataflex.rewards.scoring import score_answers
from dataflex.rollouts import Prompt, Rollout, Sampling, sample_answers
from dataflex.rollouts.answers import gather_answers, prompts_of
from dataflex.types import Autocast, RewardRequest, Sample
from dataflex.utils.distributed import Ranks
from dataflex.utils.progress import progress_bar


@dataclass(frozen=True, slots=True)
class SampleLoss:
    """Cross-entropy of one sample, summed over its label tokens (nats), and their number."""

    total: float
    tokens: int


@dataclass(frozen=True, slots=True)
class AnswerMetric:
    """A metric of the model's answers.

    Attributes:
        key: Name that the evaluation reports it under.
        reward: Scores answers.
        max_new_tokens: Longest answer in tokens.
        max_prompt_length: Longest prompt in tokens; longer ones are cut from the left.
    """

    key: str
    reward: RewardBackend[Any]
    max_new_tokens: int
    max_prompt_length: int

    @classmethod
    def from_params(
        cls, params: Mapping[str, Any] | None, *, max_new_tokens: int, max_prompt_length: int
    ) -> AnswerMetric | None:
        """The metric with these parameters of the reward backend ``metric``, or None.

        Raises:
            ConfigError: Wrong parameters.
        """
        if params is None:
            return None
        return cls(metric_key(params), MetricReward.from_params(dict(params)), max_new_tokens, max_prompt_length)

    def prompts(self, template: ChatTemplate, samples: Sequence[Sample]) -> list[Prompt]:
        """What the model is asked, sample by sample."""
        longest = self.max_prompt_length
        return prompts_of(samples, lambda sample: template.encode_prompt(sample.prompt, sample.tools, longest))

    def check(self, samples: Sequence[Sample]) -> None:
        """Score every sample's own reference, so that what cannot be scored is known before there are answers.

        Raises:
            DataflexError: A package or function is missing, or a sample lacks the reference that the metric needs.
        """
        self.reward.check()
        self.reward.score(
            [
                RewardRequest(sample.id, sample.prompt, sample.reference or "", sample.reference, sample.metadata)
                for sample in samples
            ]
        )


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Evaluates a model as it is; the model is left undisturbed.

    Attributes:
        model: Causal language model on its device.
        tokenizer: Its tokenizer.
        template: Renders the prompts.
        dataset: q samples.
        batch_size: Samples of one forward pass, and answers that are generated at once.
        autocast: Opens the context of the forward passes.
        ranks: The processes that share the work.
        metric: Scores the model's answers; None for the loss alone.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    dataset: TokenizedDataset
    batch_size: int
    autocast: Autocast
    ranks: Ranks
    metric: AnswerMetric | None = None

    def evaluate(self) -> dict[str, float]:
        """``{"eval_loss": nats a token}`` and, with a metric, its mean over the samples under its key.

        A set of prompts without answers has no loss, only a metric.

        Raises:
            TrainingError: There is nothing to evaluate.
            RewardError: An answer could not be scored.
        """
        found: dict[str, float] = {}
        losses = [loss for loss in self.losses() if loss is not None]
        if losses:
            found[LOSS] = sum(loss.total for loss in losses) / sum(loss.tokens for loss in losses)
        if self.metric is not None:
            scores = [answer.reward for answer in self.answers() if answer.reward is not None]
            if scores:
                found[self.metric.key] = fmean(scores)
        if not found:
            raise TrainingError("no evaluation sample has an answer to compute a loss on", hint="set eval_strategy: no")
        return found

    def losses(self) -> list[SampleLoss | None]:
        """The loss of each sample, None for one without label tokens."""
        rows = [row for row, example in enumerate(self.dataset) if _has_loss(example.labels)]
        rows.sort(key=lambda row: len(self.dataset[row].input_ids))
        batches = [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]
        own: list[tuple[int, float, int]] = self.ranks.together(lambda: self._losses_of(batches))
        found: list[SampleLoss | None] = [None] * len(self.dataset)
        for part in self.ranks.gather(own):
            for row, total, tokens in part:
                found[row] = SampleLoss(total, tokens)
        return found

    def _losses_of(self, batches: Sequence[Sequence[int]]) -> list[tuple[int, float, int]]:
        """Row, summed loss and label tokens of the rows of this rank's share of the batches."""
        own: list[tuple[int, float, int]] = []
        rows = sum(map(len, batches))
        with (
            undisturbed(self.model),
            torch.no_grad(),
            self.autocast(),
            progress_bar(rows, "evaluation loss", unit="row", disable=not (rows and self.ranks.is_main)) as bar,
        ):
            for chosen in self.ranks.share(batches):
                own += self._batch_losses(chosen)
                bar.update(len(chosen) * self.ranks.count)
        return own

    def _batch_losses(self, rows: Sequence[int]) -> list[tuple[int, float, int]]:
        """Row, summed loss and label tokens of the rows of one batch."""
        batch = collate([self.dataset[row] for row in rows], int(self.tokenizer.pad_token_id))
        sums, counts = label_log_probs(self.model, batch.to(next(self.model.parameters()).device))
        return [
            (row, -float(total), int(count))
            for row, total, count in zip(rows, sums.double().tolist(), counts.tolist(), strict=True)
        ]

    def answers(self) -> list[Rollout]:
        """The model's greedy answer to each sample, with its reward.

        Raises:
            TrainingError: There is no metric.
            RewardError: An answer could not be scored.
        """
        if self.metric is None:
            raise TrainingError("there is no metric to score answers with", hint="set eval_metric")
        samples = self.dataset.samples
        prompts = self.metric.prompts(self.template, samples)
        draw = partial(
            sample_answers,
            self.model,
            self.tokenizer,
            self.ranks.share(prompts),
            Sampling(temperature=1.0, max_new_tokens=self.metric.max_new_tokens, top_k=1),
            answers_per_prompt=1,
            stop_token_ids=self.template.stop_token_ids(self.tokenizer),
            seed=0,
            step=0,
            batch_size=self.batch_size,
            autocast=self.autocast,
            show_progress=self.ranks.is_main,
        )
        own = self.ranks.together(draw)
        return score_answers(self.metric.reward, samples, gather_answers(own, prompts, self.ranks), self.ranks)


def _has_loss(labels: Sequence[int]) -> bool:
    """Whether a label has logits before it: one at position 0 has none."""
    return any(label != IGNORE_INDEX for label in labels[1:])
