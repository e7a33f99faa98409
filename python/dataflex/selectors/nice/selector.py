"""NICE: training gradients against the policy gradient of a reward that need not be differentiable.

Wang et al., "NICE Data Selection for Instruction Tuning in LLMs with Non-differentiable Evaluation Metric", ICML 2025
(openreview 2wt8m5HUBs). For each evaluation prompt x, M answers y_m are sampled from the model in training and scored
by a reward backend; with advantages A_m the target feature is

    phi_x = P * (1 / M) sum_m A_m grad( - sum_t log pi_T(y_mt | x, y_m<t) ),

a training sample's feature is phi_i = P u_i with its Adam-normalised loss gradient u_i, and its score is
mean_x cos(phi_i, phi_x). Both sides are gradients of a loss: a step on sample i changes the expected reward's loss by
-lr <u_i, g_x>, so the largest cosine helps most.

Where most answers earn nothing, the few that do are a noisy estimate: with ``reference_answer: sample`` the reference
answer is one more answer, scored and weighted like the others. It was not drawn from the policy, so the gradient is no
longer unbiased; it is what makes a sparse reward usable.

Deviations from the official code: rewards are never dropped silently, a constant reward can be subtracted by a
baseline, and the sampled tokens are used as they were sampled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import SelectionError
from dataflex.gradients.advantages import Baseline
from dataflex.gradients.policy import PolicyFeatures, WeightedPrompt
from dataflex.gradients.similarity import Aggregate
from dataflex.projection.projector import Projector
from dataflex.rewards.base import RewardBackend, since
from dataflex.rewards.scoring import reward_facts
from dataflex.rollouts import Prompt, Rollout
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.gradient import (
    EVALUATION,
    GradientSelector,
    TargetGradients,
    check_tasks,
    split_answered,
    target_note,
)
from dataflex.selectors.nice.answers import Answers
from dataflex.selectors.nice.config import NiceConfig
from dataflex.selectors.nice.references import check_answers, reference_rule
from dataflex.selectors.nice.targets import Halves, weighted
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
    more_reliable: ClassVar[str] = (
        "more evaluation prompts, more answers (mc_samples), a softer reward, or the reference answers among the "
        "answers (reference_answer: auto, with answers in eval_dataset)"
    )

    @property
    def reads_text(self) -> tuple[str, ...]:
        """The targets' prompts and references."""
        return (*super().reads_text, "eval_dataset")

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
            check_tasks(context.eval_dataset.samples, self.config.task_column)
        if self.config.on_no_signal == "reference" and not split_answered(context)[0]:
            raise SelectionError(
                "on_no_signal 'reference' needs reference answers, and no evaluation sample has one",
                hint="add answers to eval_dataset, or use on_no_signal: raise",
            )
        check_answers(self.config, context.eval_dataset.samples)
        self.answers.check(context)
        if self.config.generation_top_p < 1 or self.config.generation_top_k > 0:
            logger.warning("a truncated sampling distribution (top_p, top_k) biases the policy gradient of NICE")

    def plan(self, context: SelectionContext) -> Plan:
        """Answers and gradients of both sides; rewards are counted only.

        The answers whose gradients are timed are taken to be as long as the references, or as answers may be.
        """
        samples = context.eval_dataset.samples if context.eval_dataset else []
        asked = self.answers.prompts(context, samples)
        prompts = [self._stand_in(context, row, prompt) for row, prompt in enumerate(asked)]
        gradients = PolicyFeatures(
            context,
            prompts,
            self.projector_for(self.scoring(context)),
            temperature=self.config.generation_temperature,
            batch_tokens=self.config.feature_batch_tokens,
        )
        answers = PlannedPart(
            name="answers",
            lengths=[len(prompt.prompt_ids) for prompt in prompts],
            prepare=lambda: None,
            batches=lambda: self.answers.batches(prompts),
            compute=lambda rows: self.answers.sample(context, [asked[row] for row in rows], progress=False),
        )
        lengths = [len(prompt.answers) * (len(prompt.prompt_ids) + len(prompt.answers[0])) for prompt in prompts]
        calls = len(samples) * self.config.mc_samples + self._most_references(samples)
        plan = super().plan(context)
        return replace(
            plan,
            parts=[answers, self.planned(context, EVALUATION, gradients, lengths), *plan.parts],
            counts={**plan.counts, "reward calls": calls},
            notes=[*plan.notes, self._target_note(samples)],
        )

    def _target_note(self, samples: Sequence[Sample]) -> str:
        """What the target will rest on."""
        config, references = self.config, self._most_references(samples)
        answers = f"prompts with {config.mc_samples} answers each"
        if references:
            answers += f" and {references} reference answers ({config.reference_answer})"
        note = target_note(samples, answers, config.aggregate, config.task_column)
        return f"{note}; prompts whose answers all earn the same do not count"

    def expected_targets(self, context: SelectionContext) -> tuple[Aggregate, Sequence[Sample]]:
        """The rule over the prompts, all of which may have a signal.

        Args:
            context: The selection's context.

        Returns:
            The rule, and the samples that can be a target.
        """
        return self.config.aggregate, context.eval_dataset.samples if context.eval_dataset else []

    def target_gradients(self, context: SelectionContext, projector: Projector, watch: Stopwatch) -> TargetGradients:
        """Answers, rewards and policy gradients of the evaluation prompts.

        Raises:
            SelectionError: No prompt carries a signal and ``on_no_signal`` is ``raise``.
            RewardError: The reward backend failed.
        """
        samples = context.eval_dataset.samples if context.eval_dataset else []
        asked = self.answers.prompts(context, samples)
        before = {} if self.config.replay_rewards is not None else self.answers.reward.stats()
        sampled = self.answers.scored(context, samples, asked, watch)
        references = self._references(context, samples, asked, sampled, watch)
        answers = [[*own, references[row]] if row in references else own for row, own in enumerate(sampled)]
        prompts = self._weighted_prompts(samples, asked, answers)

        def report(unusual: Mapping[str, Sequence[str]]) -> dict[str, Any]:
            found = {
                "rewards": reward_facts([answer for own in sampled for answer in own]),
                "reward_backend": {"name": self.answers.reward.name, **since(before, self.answers.reward.stats())},
                "prompts": {
                    "total": len(samples),
                    "with_signal": len(prompts),
                    "with_reference": len(references),
                    **unusual,
                },
                "reference_answer": reference_rule(self.config, samples),
                "target": "policy gradient" if prompts else "reference answers",
                "left_out": self._left_out(answers, prompts, unusual),
            }
            if references:
                found["reference_rewards"] = reward_facts(list(references.values()))
            return found

        if not prompts:
            return self._of_references(context, projector, report)
        halves = Halves.of(prompts, self.config.baseline)
        features = PolicyFeatures(
            context,
            halves.prompts,
            projector,
            temperature=self.config.generation_temperature,
            batch_tokens=self.config.feature_batch_tokens,
        )
        chosen = [samples[prompt.row] for prompt in prompts]
        return TargetGradients(features, halves.factors, chosen, self.config.aggregate, report)

    def _left_out(
        self,
        answers: Sequence[list[Rollout]],
        prompts: Sequence[WeightedPrompt],
        unusual: Mapping[str, Sequence[str]],
    ) -> dict[str, int]:
        """Prompts and answers that the targets are not made of, by the reason."""
        unscored = sum(all(answer.reward is None for answer in own) for own in answers)
        return {
            "answers without a reward": sum(answer.reward is None for own in answers for answer in own),
            "prompts without a scored answer": unscored,
            "prompts without a signal": len(answers) - len(prompts) - unscored,
            "prompts with a gradient that is not finite": len(unusual["not_finite"]),
        }

    def close(self) -> None:
        """Free the reward backend and the engine that draws answers."""
        super().close()
        self.answers.close()

    def _stand_in(self, context: SelectionContext, row: int, asked: Prompt) -> WeightedPrompt:
        """An evaluation prompt with M answers of a likely length."""
        assert context.eval_dataset is not None
        example = context.eval_dataset[row]
        reference = [label for label in example.labels if label != IGNORE_INDEX][: self.config.max_new_tokens]
        answer = reference or [int(context.tokenizer.pad_token_id)] * self.config.max_new_tokens
        rule = reference_rule(self.config, context.eval_dataset.samples)
        count = self.config.mc_samples + (rule == "sample" and bool(reference))
        return WeightedPrompt(row, asked.token_ids, [answer] * count, [1.0] * count)

    def _most_references(self, samples: Sequence[Sample]) -> int:
        """How many reference answers may be scored in a round."""
        return 0 if reference_rule(self.config, samples) == "none" else sum(bool(s.reference) for s in samples)

    def _references(
        self,
        context: SelectionContext,
        samples: Sequence[Sample],
        asked: Sequence[Prompt],
        sampled: Sequence[list[Rollout]],
        watch: Stopwatch,
    ) -> dict[int, Rollout]:
        """Scored reference answers by row, of the rows where ``reference_answer`` wants one and there is one."""
        rule = reference_rule(self.config, samples)
        rows = [
            row
            for row, sample in enumerate(samples)
            if rule != "none"
            and sample.reference
            and (rule == "sample" or self._weighted(row, asked[row], sampled[row]) is None)
        ]
        if not rows:
            return {}
        chosen, prompts = [samples[row] for row in rows], [asked[row] for row in rows]
        return dict(zip(rows, self.answers.references(context, chosen, prompts, watch), strict=True))

    def _weighted(self, row: int, asked: Prompt, answers: Sequence[Rollout]) -> WeightedPrompt | None:
        """A row's prompt with the weights of these answers; None where every advantage is zero."""
        horizon = len(asked.token_ids) + self.config.max_new_tokens
        prompt = WeightedPrompt(row, asked.token_ids, [], [], horizon)
        return weighted(prompt, answers, self.config.baseline, length_normalize=self.config.length_normalize)

    def _weighted_prompts(
        self, samples: Sequence[Sample], asked: Sequence[Prompt], answers: Sequence[list[Rollout]]
    ) -> list[WeightedPrompt]:
        """Prompts whose scored answers have at least one advantage that is not zero; a reference is answer M + 1."""
        found = [self._weighted(row, asked[row], own) for row, own in enumerate(answers)]
        prompts = [prompt for prompt in found if prompt is not None]
        if not prompts and self.config.on_no_signal == "raise":
            raise SelectionError(no_signal_message(samples, answers, self.config.baseline), hint=NO_SIGNAL_HINT)
        if len(prompts) == 1 < len(samples):
            logger.warning(
                "one of %d evaluation prompts carries a signal: the direction rests on it alone; how reliable it is "
                "cannot be known; what helps: %s",
                len(samples),
                self.more_reliable,
            )
        return prompts

    def _of_references(
        self,
        context: SelectionContext,
        projector: Projector,
        report: Callable[[Mapping[str, Sequence[str]]], dict[str, Any]],
    ) -> TargetGradients:
        """Gradients of the reference answers, for a round without a signal (``on_no_signal: reference``)."""
        logger.warning(
            "no evaluation prompt carries a reward signal at step %d: selecting by the gradient of the reference "
            "answers instead (on_no_signal: reference)",
            context.step,
        )
        features, dataset = self.reference_gradients(context, projector)
        return TargetGradients(features, [[1.0]] * len(dataset), dataset.samples, self.config.aggregate, report)


NO_SIGNAL_HINT = (
    "answers in eval_dataset (reference_answer: auto or sample), a higher generation_temperature, more mc_samples, "
    "an easier evaluation set or another reward; or on_no_signal: reference to use the reference answers' gradient in "
    "such a round"
)


def no_signal_message(samples: Sequence[Sample], sampled: Sequence[list[Rollout]], baseline: Baseline) -> str:
    """Says that a round has no signal, with a few answers to look at."""
    pairs = [(sample, rollout) for sample, own in zip(samples, sampled, strict=True) for rollout in own]
    answers = [
        f"    {shown(sample.id, 60)}: {(sample.prompt[-1]['content'] if sample.prompt else '')[:60]!r} -> "
        f"{rollout.text[:60]!r} "
        f"reward {'missing' if rollout.reward is None else rollout.reward}"
        for sample, rollout in pairs[:5]
    ]
    facts = reward_facts([rollout for _, rollout in pairs])
    return (
        f"no evaluation prompt carries a signal: {facts['scored']} of {facts['answers']} answers have a reward, "
        f"between {facts['min']} and {facts['max']}, and with baseline {baseline!r} every advantage is zero; "
        "the first answers:\n" + "\n".join(answers)
    )
