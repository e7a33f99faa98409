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
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from dataflex.data.encoding import IGNORE_INDEX
from dataflex.errors import SelectionError
from dataflex.gradients.policy import PolicyFeatures, WeightedPrompt
from dataflex.gradients.similarity import Aggregate
from dataflex.gradients.store import FeatureStore
from dataflex.models.fingerprint import fingerprint, state_fingerprint
from dataflex.projection.projector import Projector
from dataflex.rewards import resolve_reward
from dataflex.rewards.base import RewardBackend, check_rewards
from dataflex.rollouts import Prompt, Rollout, RolloutFile, Sampling, sample_answers
from dataflex.rollouts.vllm import VllmRolloutConfig, VllmSampler
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.gradient import EVALUATION, GradientConfig, GradientSelector, Targets, split_answered
from dataflex.selectors.plan import Plan, PlannedPart
from dataflex.types import RewardRequest, Sample
from dataflex.utils.distributed import Ranks
from dataflex.utils.progress import Stopwatch

logger = logging.getLogger(__name__)

Baseline = Literal["none", "leave_one_out", "mean_std"]


class NiceConfig(GradientConfig):
    """Parameters of NICE."""

    reward: str | dict[str, Any] | RewardBackend[Any] | None = Field(
        None, description="name of a metric or backend, {name, params}, or a backend; before reward_model_backend"
    )
    reward_model_backend: str = Field("local_vllm", description="reward backend: local_vllm, api, metric or a plugin's")
    reward_backend_params: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="per backend or metric: its parameters"
    )
    mc_samples: int = Field(4, ge=1, description="answers M sampled for each evaluation prompt")
    max_new_tokens: int = Field(512, ge=1, description="longest answer, in tokens")
    generation_temperature: float = Field(0.7, gt=0, description="temperature T of the sampled distribution")
    generation_top_p: float = Field(1.0, gt=0, le=1, description="nucleus truncation; below 1 it biases the gradient")
    generation_top_k: int = Field(0, ge=0, description="top-k truncation; above 0 it biases the gradient")
    max_prompt_length: int = Field(4096, ge=1, description="longest prompt in tokens; cut from the left")
    rollout_batch_size: int = Field(16, ge=1, description="answers that are generated at once")
    rollout_backend: Literal["hf", "vllm"] = Field("hf", description="what draws the answers: transformers or vLLM")
    rollout_backend_params: VllmRolloutConfig = Field(
        default_factory=VllmRolloutConfig, description="parameters of rollout_backend: vllm"
    )
    replay_rewards: Path | None = Field(
        None, description="output_dir or cache_dir of another run: its answers and rewards are used, none is asked for"
    )
    baseline: Baseline = Field("none", description="advantage: the reward itself, minus the others' mean, or scaled")
    length_normalize: bool = Field(False, description="mean over an answer's tokens in place of the sum")
    aggregate: Aggregate = Field("mean", description="rule over the evaluation samples")
    on_no_signal: Literal["raise", "reference"] = Field(
        "raise", description="no prompt with a non-zero advantage: stop, or use the reference answers' gradient"
    )

    @field_validator("replay_rewards")
    @classmethod
    def _replay_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"there is no folder {value.absolute()}: name another run's output_dir or cache_dir")
        return value

    @model_validator(mode="after")
    def _reward_fits(self) -> NiceConfig:
        """Build the backend once: a wrong name or parameter is then an error of the configuration."""
        self.build_reward()
        return self

    def build_reward(self) -> RewardBackend[Any]:
        """The configured reward backend; it starts nothing before it is used."""
        reward = self.reward or self.reward_model_backend
        params = self.reward_backend_params.get(reward, {}) if isinstance(reward, str) else {}
        return resolve_reward(reward, params)


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
    def reward(self) -> RewardBackend[Any]:
        """The reward backend, built on first use."""
        return self.config.build_reward()

    @cached_property
    def vllm_sampler(self) -> VllmSampler:
        """What draws the answers with ``rollout_backend: vllm``, built on first use."""
        return VllmSampler(self.config.rollout_backend_params)

    def check(self, context: SelectionContext) -> None:
        """Check projection, optimizer, evaluation set and reward backend before training starts.

        Raises:
            SelectionError: One of them does not allow a selection; the hint says what to do.
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
        if self.config.replay_rewards is None:
            self.reward.check()
            if self.config.rollout_backend == "vllm":
                self.vllm_sampler.check(context.model)
        if self.config.generation_top_p < 1 or self.config.generation_top_k > 0:
            logger.warning("a truncated sampling distribution (top_p, top_k) biases the policy gradient of NICE")

    def plan(self, context: SelectionContext) -> Plan:
        """Answers and gradients of both sides; rewards are counted only.

        The answers whose gradients are timed are taken to be as long as the references, or as answers may be.
        """
        samples = context.eval_dataset.samples if context.eval_dataset else []
        prompts = [self._stand_in(context, row) for row in range(len(samples))]
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
            batches=lambda rows: self._answer_batches(prompts, rows),
            compute=lambda rows: self._sample(context, [samples[row] for row in rows], progress=False),
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
        rollouts = self._rollouts(context, samples, watch)
        prompts = self._weighted_prompts(context, samples, rollouts)
        with watch.phase(EVALUATION):
            store, kept = self._evaluation_features(context, projector, prompts)
            directions, unusual = self.directions(store, kept, self.config.aggregate)
        report = {
            "rewards": reward_facts(rollouts),
            "reward_backend": {"name": self.reward.name, **self.reward.stats()},
            "prompts": {"total": len(samples), "with_signal": len(prompts), **unusual},
            "target": "policy gradient" if prompts else "reference answers",
        }
        return Targets(directions, report)

    def close(self) -> None:
        """Free the reward backend and the engine that draws answers."""
        for part in ("reward", "vllm_sampler"):
            if part in self.__dict__:
                self.__dict__[part].close()

    def _rollouts(self, context: SelectionContext, samples: Sequence[Sample], watch: Stopwatch) -> list[Rollout]:
        """Sampled and scored answers of the round, from disk where the same round left them."""
        asked = {
            "data": context.eval_dataset.fingerprint if context.eval_dataset else None,
            "prompts": fingerprint([[sample.id, self._prompt_ids(context, sample)] for sample in samples]),
        }
        judged = {"samples": fingerprint([[sample.id, sample.messages, dict(sample.metadata)] for sample in samples])}
        name = Path("rollouts") / f"step-{context.step}.jsonl"
        if self.config.replay_rewards is not None:
            replayed = RolloutFile(self.config.replay_rewards / name, asked, judged).replayed()
            if context.ranks.is_main:
                own = self.work_dir(context) / name
                RolloutFile(own, {"replayed": True, **asked}, {"replayed": True, **judged}).write(replayed)
            logger.info("using the answers and rewards of %s", self.config.replay_rewards / name)
            return replayed
        file = RolloutFile(
            self.work_dir(context) / name,
            answers={
                "state": state_fingerprint(context.model, context.autocast),
                "config": self.config.model_dump(mode="json", include=SAMPLING_FIELDS),
                **asked,
            },
            rewards={"name": self.reward.name, "config": self.reward.config.model_dump(mode="json"), **judged},
        )
        ranks = context.ranks
        stored = ranks.main_first(file.scored)
        if stored is not None:
            logger.info("using the answers and rewards of %s", file.path)
            return stored
        ranks.on_main(file.report_unused)
        answers = ranks.main_first(file.answered)
        if answers is None:
            with watch.phase("answers"):
                answers = self._shared_answers(context, samples)
            ranks.on_main(partial(file.write_answers, answers))
        with watch.phase("rewards"):
            scored = score_answers(self.reward, samples, answers, ranks)
        ranks.on_main(partial(file.write, scored))
        return scored

    def _shared_answers(self, context: SelectionContext, samples: Sequence[Sample]) -> list[Rollout]:
        """M answers to each prompt, not yet scored, of which every rank draws its share."""
        ranks = context.ranks
        if self.config.rollout_backend == "vllm":  # one engine for all ranks
            drawn = [ranks.on_main(lambda: [asdict(answer) for answer in self._sample(context, samples)])]
        else:
            own = self._sample(context, ranks.share(samples), progress=ranks.is_main)
            drawn = ranks.gather([asdict(answer) for answer in own])
        by_sample: dict[str, list[Rollout]] = {sample.id: [] for sample in samples}
        for answer in (Rollout(**fields) for part in drawn for fields in part):
            by_sample[answer.sample_id].append(answer)
        return [answer for answers in by_sample.values() for answer in answers]

    def _sample(self, context: SelectionContext, samples: Sequence[Sample], *, progress: bool = True) -> list[Rollout]:
        """M answers to each prompt, not yet scored."""
        config = self.config
        prompts = [Prompt(sample.id, self._prompt_ids(context, sample)) for sample in samples]
        sampling = Sampling(
            config.generation_temperature, config.max_new_tokens, config.generation_top_k, config.generation_top_p
        )
        how: dict[str, Any] = {
            "answers_per_prompt": config.mc_samples,
            "stop_token_ids": context.template.stop_token_ids(context.tokenizer),
            "seed": config.seed,
            "step": context.step,
            "autocast": context.autocast,
        }
        if config.rollout_backend == "vllm":
            folder = self.work_dir(context) / "rollouts"
            return self.vllm_sampler.sample_answers(
                context.model, context.tokenizer, prompts, sampling, folder=folder, **how
            )
        how |= {"batch_size": config.rollout_batch_size, "show_progress": progress}
        return sample_answers(context.model, context.tokenizer, prompts, sampling, **how)

    def _answer_batches(self, prompts: Sequence[WeightedPrompt], rows: list[int]) -> list[list[int]]:
        """About the prompts whose answers are drawn at once: neighbours in length."""
        order = sorted(rows, key=lambda row: len(prompts[row].prompt_ids))
        size = max(1, self.config.rollout_batch_size // self.config.mc_samples)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _stand_in(self, context: SelectionContext, row: int) -> WeightedPrompt:
        """An evaluation prompt with M answers of a likely length."""
        assert context.eval_dataset is not None
        example = context.eval_dataset[row]
        reference = [label for label in example.labels if label != IGNORE_INDEX][: self.config.max_new_tokens]
        answer = reference or [int(context.tokenizer.pad_token_id)] * self.config.max_new_tokens
        count = self.config.mc_samples
        return WeightedPrompt(row, self._prompt_ids(context, example.sample), [answer] * count, [1.0] * count)

    def _weighted_prompts(
        self, context: SelectionContext, samples: Sequence[Sample], rollouts: Sequence[Rollout]
    ) -> list[WeightedPrompt]:
        """Prompts whose scored answers have at least one advantage that is not zero."""
        answers: dict[str, list[Rollout]] = {}
        for rollout in rollouts:
            if rollout.reward is not None:
                answers.setdefault(rollout.sample_id, []).append(rollout)
        prompts = []
        for row, sample in enumerate(samples):
            scored = answers.get(sample.id, [])
            weights = advantages([float(rollout.reward or 0.0) for rollout in scored], self.config.baseline)
            if not any(weights):
                continue
            if self.config.length_normalize:
                weights = [w / len(rollout.token_ids) for w, rollout in zip(weights, scored, strict=True)]
            token_ids = [rollout.token_ids for rollout in scored]
            prompts.append(WeightedPrompt(row, self._prompt_ids(context, sample), token_ids, weights))
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

    def _prompt_ids(self, context: SelectionContext, sample: Sample) -> list[int]:
        return context.template.encode_prompt(sample.prompt, sample.tools, self.config.max_prompt_length)


SAMPLING_FIELDS = {
    "seed",
    "mc_samples",
    "max_new_tokens",
    "max_prompt_length",
    "generation_temperature",
    "generation_top_p",
    "generation_top_k",
    "rollout_backend",
}
"""The parameters that the sampled answers depend on."""

NO_SIGNAL_HINT = (
    "a higher generation_temperature, more mc_samples, an easier evaluation set or another reward; or "
    "on_no_signal: reference to use the reference answers' gradient in such a round"
)


def score_answers(
    reward: RewardBackend[Any], samples: Sequence[Sample], answers: Sequence[Rollout], ranks: Ranks
) -> list[Rollout]:
    """The answers with their rewards, asked for by the main process; one that could not be scored keeps None.

    Raises:
        RewardError: The backend fails, or returns something else than one finite number or None an answer.
    """
    by_id = {sample.id: sample for sample in samples}
    requests = []
    for answer in answers:
        sample = by_id[answer.sample_id]
        requests.append(RewardRequest(sample.id, sample.prompt, answer.text, sample.reference, sample.metadata))

    def score() -> list[float | None]:
        rewards = reward.score(requests)
        check_rewards(rewards, requests, reward.name)
        return rewards

    return [replace(answer, reward=value) for answer, value in zip(answers, ranks.on_main(score), strict=True)]


def advantages(rewards: Sequence[float], baseline: Baseline) -> list[float]:
    """Advantage A_m of each answer of one prompt.

    Args:
        rewards: Rewards of the answers that could be scored.
        baseline: ``none``: A = r. ``leave_one_out``: A_m = r_m - mean of the others, which keeps the gradient
            unbiased and lowers its variance (Kool et al. 2019); one answer alone has no others, so A = 0.
            ``mean_std``: (r - mean) / standard deviation, biased. Equal rewards give A = 0 under both.

    Returns:
        As many numbers as rewards.
    """
    if baseline == "none":
        return list(rewards)
    if len(set(rewards)) < 2 or pstdev(rewards) == 0:  # 0 also where the squared differences are too small for a float
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    if baseline == "leave_one_out":
        count = len(rewards)
        return [(reward - mean) * count / (count - 1) for reward in rewards]
    deviation = pstdev(rewards)
    return [(reward - mean) / deviation for reward in rewards]


def reward_facts(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Counts, mean and range of the rewards of a round."""
    scored = [rollout.reward for rollout in rollouts if rollout.reward is not None]
    return {
        "answers": len(rollouts),
        "scored": len(scored),
        "missing": len(rollouts) - len(scored),
        "mean": fmean(scored) if scored else None,
        "min": min(scored, default=None),
        "max": max(scored, default=None),
        "finished": sum(rollout.finished for rollout in rollouts),
    }


def no_signal_message(samples: Sequence[Sample], rollouts: Sequence[Rollout], baseline: Baseline) -> str:
    """Says that a round has no signal, with a few answers to look at."""
    prompts = {sample.id: sample.prompt[-1]["content"] for sample in samples if sample.prompt}
    shown = [
        f"    {rollout.sample_id}: {prompts.get(rollout.sample_id, '')[:60]!r} -> {rollout.text[:60]!r} "
        f"reward {'missing' if rollout.reward is None else rollout.reward}"
        for rollout in rollouts[:5]
    ]
    facts = reward_facts(rollouts)
    return (
        f"no evaluation prompt carries a signal: {facts['scored']} of {facts['answers']} answers have a reward, "
        f"between {facts['min']} and {facts['max']}, and with baseline {baseline!r} every advantage is zero; "
        "the first answers:\n" + "\n".join(shown)
    )
