"""NICE: training gradients against the policy gradient of a reward that need not be differentiable.

Wang et al., "NICE Data Selection for Instruction Tuning in LLMs with Non-differentiable Evaluation Metric", ICML 2025
(openreview 2wt8m5HUBs). For each evaluation prompt x, M answers y_m are sampled from the model in training and scored
by a reward backend; with advantages A_m the target feature is

    phi_x = P * (1 / M) sum_m A_m grad( - sum_t log pi_T(y_mt | x, y_m<t) ),

a training sample's feature is phi_i = P u_i with its Adam-normalised loss gradient u_i, and its score is
mean_x cos(phi_i, phi_x). Both sides are gradients of a loss: a step on sample i changes the expected reward's loss by
-lr <u_i, g_x>, so the largest cosine helps most.

Deviations from the official code: rewards are never dropped silently, a constant reward can be subtracted by a
baseline, and the sampled tokens are used as they were sampled.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import SelectionError
from dataflex.gradients.advantages import Baseline, advantages, unit_scale
from dataflex.gradients.policy import PolicyFeatures, WeightedPrompt
from dataflex.gradients.store import FeatureStore
from dataflex.projection.projector import Projector
from dataflex.rewards.base import RewardBackend
from dataflex.rewards.scoring import reward_facts
from dataflex.rollouts import Rollout
from dataflex.rollouts.answers import by_row
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.gradient import EVALUATION, GradientSelector, Targets, split_answered
from dataflex.selectors.nice.answers import Answers
from dataflex.selectors.nice.config import NiceConfig
from dataflex.selectors.plan import Plan, PlannedPart
from dataflex.types import Sample
from dataflex.utils.progress import Stopwatch
from dataflex.utils.shown import shown

logger = logging.getLogger(__name__)


class NiceSelector(GradientSelector[NiceConfig]):
    """Selects the candidates whose optimizer step raises the expected reward on the evaluation set most.

    Source: Wang et al., NICE Data Selection for Instruction Tuning in LLMs with Non-differentiable Evaluation Metric,
    ICML 2025, openreview 2wt8m5HUBs.

    Example:
        >>> selector = NiceSelector(reward="exact_match", proj_dim=4096, mc_samples=4)
    """

    name: ClassVar[str] = "nice"
    Config = NiceConfig

    @cached_property
    def answers(self) -> Answers:
        """What draws and scores the answers."""
        return Answers(self.config, self.work_dir)

    @property
    def reward(self) -> RewardBackend[Any]:
        """The reward backend, built on first use; the doctor checks it."""
        return self.answers.reward

    def check(self, context: SelectionContext) -> None:
        """Check projection, optimizer, evaluation set and reward backend before training starts.

        Raises:
            SelectionError: One of them does not allow a selection; the hint says what to do.
            ModelError: Prompts with their longest answers have more tokens than the model has positions.
        """
        super().check(context)
        assert context.eval_dataset is not None
        if self.config.aggregate == "task_max":
            self.check_tasks(context.eval_dataset.samples)
        if self.config.on_no_signal == "reference" and not split_answered(context)[0]:
            raise SelectionError(
                "on_no_signal 'reference' needs reference answers, and no evaluation sample has one",
                hint="add answers to eval_dataset, or use on_no_signal: raise",
            )
        self.answers.check(context)
        if self.config.generation_top_p < 1 or self.config.generation_top_k > 0:
            logger.warning("a truncated sampling distribution (top_p, top_k) biases the policy gradient of NICE")

    def plan(self, context: SelectionContext) -> Plan:
        """Answers and gradients of both sides; rewards are counted only.

        The answers whose gradients are timed are taken to be as long as the references, or as answers may be.
        """
        samples = context.eval_dataset.samples if context.eval_dataset else []
        prompts = [self._stand_in(context, row) for row in range(len(samples))]
        asked = self.answers.prompts(context, samples)
        gradients = PolicyFeatures(
            context,
            prompts,
            self.projector(),
            temperature=self.config.generation_temperature,
            batch_tokens=self.config.feature_batch_tokens,
        )
        answers = PlannedPart(
            name="answers",
            lengths=[len(prompt.prompt_ids) for prompt in prompts],
            prepare=lambda: None,
            batches=lambda rows: self.answers.batches(prompts, rows),
            compute=lambda rows: self.answers.sample(context, [asked[row] for row in rows], progress=False),
        )
        lengths = [len(prompt.answers) * (len(prompt.prompt_ids) + len(prompt.answers[0])) for prompt in prompts]
        return Plan(
            [answers, self.planned(EVALUATION, gradients, lengths), *super().plan(context).parts],
            {"reward calls": len(samples) * self.config.mc_samples},
        )

    def targets(self, context: SelectionContext, projector: Projector, watch: Stopwatch) -> Targets:
        """Answers, rewards and policy gradients of the evaluation prompts.

        Raises:
            SelectionError: No prompt carries a signal and ``on_no_signal`` is ``raise``.
            RewardError: The reward backend failed.
        """
        samples = context.eval_dataset.samples if context.eval_dataset else []
        rollouts = self.answers.scored(context, samples, watch)
        prompts = self._weighted_prompts(context, samples, rollouts)
        with watch.phase(EVALUATION):
            store, kept = self._evaluation_features(context, projector, prompts)
            directions, unusual = self.directions(store, kept, self.config.aggregate)
        report = {
            "rewards": reward_facts(rollouts),
            "reward_backend": {"name": self.answers.reward.name, **self.answers.reward.stats()},
            "prompts": {"total": len(samples), "with_signal": len(prompts), **unusual},
            "target": "policy gradient" if prompts else "reference answers",
            "left_out": self._left_out(samples, rollouts, prompts, unusual),
        }
        return Targets(directions, report)

    def _left_out(
        self,
        samples: Sequence[Sample],
        rollouts: Sequence[Rollout],
        prompts: Sequence[WeightedPrompt],
        unusual: Mapping[str, Sequence[str]],
    ) -> dict[str, int]:
        """Prompts and answers that the targets are not made of, by the reason."""
        rows = by_row(rollouts, [sample.id for sample in samples])
        unscored = sum(all(rollout.reward is None for rollout in own) for own in rows)
        return {
            "answers without a reward": sum(rollout.reward is None for rollout in rollouts),
            "prompts without a scored answer": unscored,
            "prompts without a signal": len(samples) - len(prompts) - unscored,
            "prompts with a gradient that is not finite": len(unusual["not_finite"]),
        }

    def close(self) -> None:
        """Free the reward backend and the engine that draws answers."""
        self.answers.close()

    def _stand_in(self, context: SelectionContext, row: int) -> WeightedPrompt:
        """An evaluation prompt with M answers of a likely length."""
        assert context.eval_dataset is not None
        example = context.eval_dataset[row]
        reference = [label for label in example.labels if label != IGNORE_INDEX][: self.config.max_new_tokens]
        answer = reference or [int(context.tokenizer.pad_token_id)] * self.config.max_new_tokens
        count = self.config.mc_samples
        return WeightedPrompt(row, self.answers.prompt_ids(context, example.sample), [answer] * count, [1.0] * count)

    def _weighted_prompts(
        self, context: SelectionContext, samples: Sequence[Sample], rollouts: Sequence[Rollout]
    ) -> list[WeightedPrompt]:
        """Prompts whose scored answers have at least one advantage that is not zero."""
        answers = by_row(rollouts, [sample.id for sample in samples])
        prompts = []
        for row, (sample, own) in enumerate(zip(samples, answers, strict=True)):
            scored = [rollout for rollout in own if rollout.reward is not None]
            rewards = unit_scale([float(rollout.reward or 0.0) for rollout in scored])
            weights = unit_scale(advantages(rewards, self.config.baseline))
            if not any(weights):
                continue
            if self.config.length_normalize:
                weights = [w / len(rollout.token_ids) for w, rollout in zip(weights, scored, strict=True)]
            token_ids = [rollout.token_ids for rollout in scored]
            prompt_ids = self.answers.prompt_ids(context, sample)
            horizon = len(prompt_ids) + self.config.max_new_tokens
            prompts.append(WeightedPrompt(row, prompt_ids, token_ids, weights, horizon))
        if not prompts and self.config.on_no_signal == "raise":
            raise SelectionError(no_signal_message(samples, rollouts, self.config.baseline), hint=NO_SIGNAL_HINT)
        return prompts

    def _evaluation_features(
        self, context: SelectionContext, projector: Projector, prompts: Sequence[WeightedPrompt]
    ) -> tuple[FeatureStore, list[Sample]]:
        """Features of the prompts, or of the reference answers without any (``on_no_signal: reference``).

        Returns:
            The store and the sample of each of its rows.
        """
        assert context.eval_dataset is not None
        if not prompts:
            logger.warning(
                "no evaluation prompt carries a reward signal at step %d: selecting by the gradient of the reference "
                "answers instead (on_no_signal: reference)",
                context.step,
            )
            return self.reference_features(context, projector)
        store = PolicyFeatures(
            context,
            prompts,
            projector,
            temperature=self.config.generation_temperature,
            batch_tokens=self.config.feature_batch_tokens,
        ).fill(
            self.round_dir(context) / "eval",
            shard_rows=self.config.save_interval,
            description=EVALUATION,
            dtype=self.config.features_dtype,
        )
        return store, [context.eval_dataset.samples[prompt.row] for prompt in prompts]


NO_SIGNAL_HINT = (
    "a higher generation_temperature, more mc_samples, an easier evaluation set or another reward; or "
    "on_no_signal: reference to use the reference answers' gradient in such a round"
)


def no_signal_message(samples: Sequence[Sample], rollouts: Sequence[Rollout], baseline: Baseline) -> str:
    """Says that a round has no signal, with a few answers to look at."""
    rows = by_row(rollouts, [sample.id for sample in samples])
    pairs = [(sample, rollout) for sample, own in zip(samples, rows, strict=True) for rollout in own]
    answers = [
        f"    {shown(sample.id, 60)}: {(sample.prompt[-1]['content'] if sample.prompt else '')[:60]!r} -> "
        f"{rollout.text[:60]!r} "
        f"reward {'missing' if rollout.reward is None else rollout.reward}"
        for sample, rollout in pairs[:5]
    ]
    facts = reward_facts(rollouts)
    return (
        f"no evaluation prompt carries a signal: {facts['scored']} of {facts['answers']} answers have a reward, "
        f"between {facts['min']} and {facts['max']}, and with baseline {baseline!r} every advantage is zero; "
        "the first answers:\n" + "\n".join(answers)
    )
