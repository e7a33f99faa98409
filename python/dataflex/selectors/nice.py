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
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor

from dataflex.data.collate import collate
from dataflex.errors import SelectionError
from dataflex.features import (
    FEATURE_VERSION,
    broken_rows,
    fill_store,
    fingerprint,
    report_broken,
    state_fingerprint,
)
from dataflex.gradients import policy_gradient, sample_gradient
from dataflex.progress import Stopwatch
from dataflex.projection import AdamVariant, Projector
from dataflex.rewards import resolve_reward
from dataflex.rewards.base import RewardBackend, check_rewards
from dataflex.rollouts import Prompt, Rollout, RolloutFile, Sampling, sample_answers
from dataflex.rollouts.vllm import VllmRolloutConfig, VllmSampler
from dataflex.sample_features import GradientType, SampleFeatures
from dataflex.selectors.base import Selector, SelectorConfig
from dataflex.similarity import Aggregate, cosine_scores, target_directions, top_k
from dataflex.store import FeatureStore
from dataflex.types import RewardRequest, Sample, Selection, SelectionContext, group_names

logger = logging.getLogger(__name__)

Baseline = Literal["none", "leave_one_out", "mean_std"]


class NiceConfig(SelectorConfig):
    """Parameters of NICE."""

    cache_dir: Path | None = Field(None, description="folder of features and answers; null: inside output_dir")
    gradient_type: GradientType = Field("adam", description="normalise training gradients as Adam would, or not (sgd)")
    adam_variant: AdamVariant = Field("adamw", description="torch's AdamW step, or the formula of LESS")
    proj_dim: int = Field(4096, ge=1, description="dimension k of the projected features")
    projection: str = Field("sjlt", description="kind of projection")
    seed: int = Field(123, ge=0, description="seed of the projection and of the sampled answers")
    save_interval: int = Field(16, ge=1, description="rows between two writes of the feature store")
    feature_batch_tokens: int = Field(4096, ge=1, description="padded tokens of one batch of training gradients")
    keep_features: Literal["last", "all", "none"] = Field("last", description="which rounds' features stay on disk")
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
    task_column: str = Field("task", description="column that holds a sample's task, for aggregate: task_max")
    on_no_signal: Literal["raise", "reference"] = Field(
        "raise", description="no prompt with a non-zero advantage: stop, or use the reference answers' gradient"
    )

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


@dataclass(frozen=True, slots=True)
class Target:
    """One evaluation prompt with its answers and their weights; ``row`` is its place in the evaluation set."""

    row: int
    prompt_ids: list[int]
    answers: list[list[int]]
    weights: list[float]


class NiceSelector(Selector[NiceConfig]):
    """Selects the candidates whose optimizer step raises the expected reward on the evaluation set most.

    Example:
        >>> selector = NiceSelector(reward="exact_match", proj_dim=4096, mc_samples=4)
    """

    name: ClassVar[str] = "nice"
    needs_eval_dataset: ClassVar[bool] = True
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
        """Check the reward backend, the projection and the evaluation set before training starts."""
        Projector(self.config.proj_dim, self.config.projection, self.config.seed)
        if self.config.replay_rewards is None:
            self.reward.check()
            if self.config.rollout_backend == "vllm":
                self.vllm_sampler.check(context.model)
        if not context.eval_dataset:
            raise SelectionError("NICE needs an evaluation set", hint="set eval_dataset")
        if self.config.generation_top_p < 1 or self.config.generation_top_k > 0:
            logger.warning("a truncated sampling distribution (top_p, top_k) biases the policy gradient of NICE")

    def select(self, context: SelectionContext) -> Selection:
        """Run one round: answers, rewards, both sides' features, scores.

        Raises:
            SelectionError: No prompt carries a signal and ``on_no_signal`` is ``raise``, or too few candidates have
                a usable gradient.
            RewardError: The reward backend failed.
        """
        watch = Stopwatch()
        projector = Projector(self.config.proj_dim, self.config.projection, self.config.seed)
        samples = context.eval_dataset.samples if context.eval_dataset else []
        rollouts = self._rollouts(context, samples, watch)
        targets = self._targets(context, samples, rollouts)
        with watch.phase("evaluation gradients"):
            evaluation = self._evaluation_features(context, projector, targets)
            directions, broken = self._directions(samples, evaluation, targets)
        with watch.phase("training gradients"):
            train = SampleFeatures(
                context,
                context.train_dataset,
                projector,
                gradient_type=self.config.gradient_type,
                adam_variant=self.config.adam_variant,
                batch_tokens=self.config.feature_batch_tokens,
            ).fill(
                self._round_dir(context) / "train",
                shard_rows=self.config.save_interval,
                description="training gradients",
            )
            unusable = [context.train_dataset[row].sample.id for row in broken_rows(train)]
            report_broken("training", unusable)
        with watch.phase("scores"):
            scores = cosine_scores(train.blocks(), directions, len(context.train_dataset))
            indices = top_k(scores, context.num_samples)
        self._prune(context)
        report = {
            "seconds": watch.seconds,
            "rewards": reward_facts(rollouts),
            "reward_backend": {"name": self.reward.name, **self.reward.stats()},
            "prompts": {"total": len(samples), "with_signal": len(targets), "not_finite": broken},
            "candidates": {"total": len(scores), "not_finite": len(unusable)},
            "target": "policy gradient" if targets else "reference answers",
        }
        return Selection(indices, scores, self.name, context.step, context.round, report)

    def close(self) -> None:
        """Free the reward backend and the engine that draws answers."""
        for part in ("reward", "vllm_sampler"):
            if part in self.__dict__:
                self.__dict__[part].close()

    def _rollouts(self, context: SelectionContext, samples: Sequence[Sample], watch: Stopwatch) -> list[Rollout]:
        """Sampled and scored answers of the round, from disk where the same round left them."""
        data = context.eval_dataset.fingerprint if context.eval_dataset else None
        name = Path("rollouts") / f"step-{context.step}.jsonl"
        if self.config.replay_rewards is not None:
            facts = {"replayed": True, "data": data}
            replayed = RolloutFile(self.config.replay_rewards / name, {}, {}).replayed(data)
            RolloutFile(self._work_dir(context) / name, facts, facts).write(replayed)
            logger.info("using the answers and rewards of %s", self.config.replay_rewards / name)
            return replayed
        file = RolloutFile(
            self._work_dir(context) / name,
            answers={
                "state": state_fingerprint(context.model),
                "data": data,
                "config": self.config.model_dump(mode="json", include=SAMPLING_FIELDS),
            },
            rewards={"name": self.reward.name, "config": self.reward.config.model_dump(mode="json")},
        )
        stored = file.scored()
        if stored is not None:
            logger.info("using the answers and rewards of %s", file.path)
            return stored
        answers = file.answered()
        if answers is None:
            with watch.phase("answers"):
                answers = self._sampled(context, samples)
            file.write_answers(answers)
        with watch.phase("rewards"):
            scored = score_answers(self.reward, samples, answers)
        file.write(scored)
        return scored

    def _sampled(self, context: SelectionContext, samples: Sequence[Sample]) -> list[Rollout]:
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
            folder = self._work_dir(context) / "rollouts"
            return self.vllm_sampler.sample_answers(
                context.model, context.tokenizer, prompts, sampling, folder=folder, **how
            )
        return sample_answers(
            context.model, context.tokenizer, prompts, sampling, batch_size=config.rollout_batch_size, **how
        )

    def _targets(
        self, context: SelectionContext, samples: Sequence[Sample], rollouts: Sequence[Rollout]
    ) -> list[Target]:
        """Prompts whose scored answers have at least one advantage that is not zero."""
        answers: dict[str, list[Rollout]] = {}
        for rollout in rollouts:
            if rollout.reward is not None:
                answers.setdefault(rollout.sample_id, []).append(rollout)
        targets = []
        for row, sample in enumerate(samples):
            scored = answers.get(sample.id, [])
            weights = advantages([float(rollout.reward or 0.0) for rollout in scored], self.config.baseline)
            if not any(weights):
                continue
            if self.config.length_normalize:
                weights = [w / len(rollout.token_ids) for w, rollout in zip(weights, scored, strict=True)]
            token_ids = [rollout.token_ids for rollout in scored]
            targets.append(Target(row, self._prompt_ids(context, sample), token_ids, weights))
        if not targets and self.config.on_no_signal == "raise":
            raise SelectionError(no_signal_message(samples, rollouts, self.config.baseline), hint=NO_SIGNAL_HINT)
        return targets

    def _evaluation_features(
        self, context: SelectionContext, projector: Projector, targets: Sequence[Target]
    ) -> FeatureStore:
        """Features of the targets; without any, of the reference answers (``on_no_signal: reference``)."""
        assert context.eval_dataset is not None
        examples = context.eval_dataset
        store = FeatureStore(
            self._round_dir(context) / "eval",
            {
                "version": FEATURE_VERSION,
                "state": state_fingerprint(context.model),
                "data": examples.fingerprint,
                "projection": projector.spec(),
                "targets": fingerprint([(target.row, target.answers, target.weights) for target in targets]),
                "temperature": self.config.generation_temperature,
                "max_prompt_length": self.config.max_prompt_length,
            },
            num_rows=len(targets) or len(examples),
            dim=projector.dim,
            shard_rows=self.config.save_interval,
        )
        device = next(context.model.parameters()).device

        def reference_feature(rows: list[int]) -> Tensor:
            batch = collate([examples[rows[0]]], int(context.tokenizer.pad_token_id)).to(device)
            return projector.project(sample_gradient(context.model, batch, context.autocast).float()[None])

        def target_feature(rows: list[int]) -> Tensor:
            target = targets[rows[0]]
            gradient = policy_gradient(
                context.model,
                target.prompt_ids,
                target.answers,
                target.weights,
                temperature=self.config.generation_temperature,
                autocast=context.autocast,
            )
            return projector.project(gradient.float()[None])

        if not targets:
            logger.warning(
                "no evaluation prompt carries a reward signal at step %d: selecting by the gradient of the reference "
                "answers instead (on_no_signal: reference)",
                context.step,
            )
        features = target_feature if targets else reference_feature
        fill_store(store, context.model, features, description="evaluation gradients")
        return store

    def _directions(
        self, samples: Sequence[Sample], store: FeatureStore, targets: Sequence[Target]
    ) -> tuple[Tensor, list[str]]:
        """Directions of the usable evaluation rows, and the ids of those whose gradient is not finite."""
        rows = [target.row for target in targets] or list(range(len(samples)))
        kept = [samples[row] for row in rows]
        features = store.load()
        broken = set(broken_rows(store))
        report_broken("evaluation", [kept[row].id for row in sorted(broken)])
        usable = [row for row in range(len(kept)) if row not in broken]
        groups = group_names([kept[row] for row in usable], self.config.task_column)
        return target_directions(features[usable], self.config.aggregate, groups), [kept[r].id for r in sorted(broken)]

    def _prompt_ids(self, context: SelectionContext, sample: Sample) -> list[int]:
        return context.template.encode_prompt(sample.prompt, sample.tools, self.config.max_prompt_length)

    def _work_dir(self, context: SelectionContext) -> Path:
        return self.config.cache_dir or context.output_dir

    def _round_dir(self, context: SelectionContext) -> Path:
        return self._work_dir(context) / "features" / f"step-{context.step}"

    def _prune(self, context: SelectionContext) -> None:
        """Remove the features that ``keep_features`` does not keep."""
        current = self._round_dir(context)
        for path in sorted(current.parent.glob("step-*")):
            keep = self.config.keep_features == "all" or (self.config.keep_features == "last" and path == current)
            if not keep:
                shutil.rmtree(path)


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


def score_answers(reward: RewardBackend[Any], samples: Sequence[Sample], answers: Sequence[Rollout]) -> list[Rollout]:
    """The answers with their rewards; an answer that the backend could not score keeps None.

    Raises:
        RewardError: The backend fails, or returns something else than one finite number or None an answer.
    """
    by_id = {sample.id: sample for sample in samples}
    requests = []
    for answer in answers:
        sample = by_id[answer.sample_id]
        requests.append(RewardRequest(sample.id, sample.prompt, answer.text, sample.reference, sample.metadata))
    rewards = reward.score(requests)
    check_rewards(rewards, requests, reward.name)
    return [replace(answer, reward=value) for answer, value in zip(answers, rewards, strict=True)]


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
