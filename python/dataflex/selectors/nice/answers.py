"""The answers of a round: drawn from the model by all ranks, scored by the reward backend, stored for a resumed run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dataflex.errors import RolloutError
from dataflex.gradients.policy import WeightedPrompt
from dataflex.models.bounds import Bounds, Findings
from dataflex.models.fingerprint import fingerprint, state_fingerprint
from dataflex.models.sharding import is_sharded
from dataflex.rewards.base import RewardBackend
from dataflex.rewards.scoring import score_answers
from dataflex.rollouts import Prompt, Rollout, RolloutFile, Sampling, sample_answers
from dataflex.rollouts.answers import by_row, gather_answers, prompts_of
from dataflex.rollouts.references import reference_rollouts
from dataflex.rollouts.vllm import VllmSampler
from dataflex.selectors.base import SelectionContext
from dataflex.selectors.nice.config import NiceConfig
from dataflex.types import Sample
from dataflex.utils.progress import Stopwatch

logger = logging.getLogger(__name__)

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


class Answers:
    """Draws and scores the answers of NICE's rounds.

    Args:
        config: Parameters of NICE.
        work_dir: Returns the folder of everything that rounds leave behind.
    """

    def __init__(self, config: NiceConfig, work_dir: Callable[[SelectionContext], Path]) -> None:
        self._config = config
        self._work_dir = work_dir

    @cached_property
    def reward(self) -> RewardBackend[Any]:
        """The reward backend, built on first use."""
        return self._config.build_reward()

    @cached_property
    def _vllm_sampler(self) -> VllmSampler:
        return VllmSampler(self._config.rollout_backend_params)

    def check(self, context: SelectionContext) -> None:
        """See that the reward backend, on the process that scores, and what draws answers can work.

        Raises:
            RewardError: The backend cannot score.
            RolloutError: The engine cannot draw this model's answers.
            ModelError: Prompts with their longest answers have more tokens than the model has positions.
        """
        if self._config.replay_rewards is not None:
            return
        context.ranks.on_main(self.reward.check)
        if self._config.rollout_backend == "vllm":
            if is_sharded(context.model):
                raise RolloutError(
                    "vLLM cannot take over sharded adapters yet: their parts lie on several processes",
                    hint="rollout_backend: hf, which draws answers with the sharded model",
                )
            self._vllm_sampler.check(context.model)
        samples = context.eval_dataset.samples if context.eval_dataset else []
        lengths = [len(prompt.token_ids) + self._config.max_new_tokens for prompt in self.prompts(context, samples)]
        found, what = Findings(), "evaluation prompts with their longest answers"
        found.check_lengths(Bounds.of(context.model), what, lengths, "lower max_new_tokens or max_prompt_length")
        found.raise_or_warn()

    def close(self) -> None:
        """Free the reward backend and the engine."""
        for part in ("reward", "_vllm_sampler"):
            if part in self.__dict__:
                self.__dict__[part].close()

    def scored(
        self, context: SelectionContext, samples: Sequence[Sample], prompts: Sequence[Prompt], watch: Stopwatch
    ) -> list[list[Rollout]]:
        """Sampled and scored answers of the round, M a row, from disk where the same round left them.

        Args:
            context: The selection's context.
            samples: The evaluation set.
            prompts: Its :meth:`prompts`.
            watch: Counts the seconds.

        Raises:
            RewardError: The reward backend failed.
        """
        asked = self._asked(context, prompts)

        def draw() -> list[Rollout]:
            with watch.phase("answers"):
                return self._shared(context, prompts)

        facts = {
            "state": state_fingerprint(context.model, context.autocast),
            "config": self._config.model_dump(mode="json", include=SAMPLING_FIELDS),
        }
        name = f"step-{context.step}.jsonl"
        return by_row(self._stored(context, name, facts, asked, samples, draw, watch), [s.id for s in samples])

    def references(
        self, context: SelectionContext, samples: Sequence[Sample], prompts: Sequence[Prompt], watch: Stopwatch
    ) -> list[Rollout]:
        """The reference answers of samples that have one, scored like any answer; arguments as for :meth:`scored`.

        Raises:
            RewardError: The reward backend failed.
        """
        asked = self._asked(context, prompts)
        name = f"step-{context.step}.references.jsonl"
        facts = {"reference_answer": "as cut", "max_new_tokens": self._config.max_new_tokens}

        def draw() -> list[Rollout]:
            return reference_rollouts(samples, context.template, context.tokenizer, self._config.max_new_tokens)

        return self._stored(context, name, facts, asked, samples, draw, watch)

    def _asked(self, context: SelectionContext, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """What tells one list of prompts from another."""
        asked: dict[str, Any] = {
            "data": context.eval_dataset.fingerprint if context.eval_dataset else None,
            "prompts": fingerprint([[prompt.sample_id, prompt.token_ids] for prompt in prompts]),
        }
        if repeats := sum(prompt.repeat > 0 for prompt in prompts):
            asked["repeated_ids"] = repeats  # what was stored without this fact mixed up the answers of one id
        return asked

    def _stored(
        self,
        context: SelectionContext,
        name: str,
        facts: Mapping[str, Any],
        asked: Mapping[str, Any],
        samples: Sequence[Sample],
        draw: Callable[[], list[Rollout]],
        watch: Stopwatch,
    ) -> list[Rollout]:
        """Answers with rewards: those on disk, the rewards asked for again, or all made anew.

        Args:
            context: The selection's context.
            name: Of the file below ``rollouts``.
            facts: What fixes the answers beside the prompts; a replay does without.
            asked: What tells the prompts.
            samples: The prompts' samples.
            draw: Makes the answers, not yet scored.
            watch: Counts the seconds.
        """
        ranks, path = context.ranks, self._work_dir(context) / "rollouts" / name
        judged = {"samples": fingerprint([[sample.id, sample.messages, dict(sample.metadata)] for sample in samples])}
        if self._config.replay_rewards is not None:
            source = self._config.replay_rewards / "rollouts" / name
            replayed = RolloutFile(source, asked, judged).replayed()
            if ranks.is_main:
                own = RolloutFile(path, {"replayed": True, **asked}, {"replayed": True, **judged}, samples)
                own.write(replayed)
            logger.info("using the answers and rewards of %s", source)
            return replayed
        file = RolloutFile(path, answers={**facts, **asked}, rewards={**self.reward.facts(), **judged}, samples=samples)
        stored = ranks.main_first(file.scored)
        if stored is not None:
            logger.info("using the answers and rewards of %s", path)
            return stored
        ranks.on_main(file.report_unused)
        answers = ranks.main_first(file.answered)
        ranks.barrier()  # all have looked: references take no gather to make, and the main process writes them at once
        if answers is None:
            answers = draw()
            ranks.on_main(partial(file.write_answers, answers))
        ranks.on_main(lambda: self.reward.use_folder(context.output_dir))
        with watch.phase("rewards"):
            scored = score_answers(self.reward, samples, answers, ranks)
        ranks.on_main(partial(file.write, scored))
        return scored

    def _shared(self, context: SelectionContext, prompts: Sequence[Prompt]) -> list[Rollout]:
        """M answers to each prompt, not yet scored, of which every rank draws its share."""
        ranks = context.ranks
        if self._config.rollout_backend == "vllm":  # one engine for all ranks
            drawn = ranks.on_main(lambda: [asdict(answer) for answer in self.sample(context, prompts)])
            return [Rollout(**fields) for fields in drawn]
        own = ranks.together(lambda: self.sample(context, ranks.share(prompts), progress=ranks.is_main))
        return gather_answers(own, prompts, ranks)

    def sample(self, context: SelectionContext, prompts: Sequence[Prompt], *, progress: bool = True) -> list[Rollout]:
        """M answers to each prompt, not yet scored."""
        config = self._config
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
            return self._vllm_sampler.sample_answers(
                context.model, context.tokenizer, prompts, sampling, folder=folder, **how
            )
        how |= {"batch_size": config.rollout_batch_size, "show_progress": progress}
        return sample_answers(context.model, context.tokenizer, prompts, sampling, **how)

    def batches(self, prompts: Sequence[WeightedPrompt]) -> list[list[int]]:
        """About the prompts whose answers are drawn at once: neighbours in length."""
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row].prompt_ids))
        size = max(1, self._config.rollout_batch_size // self._config.mc_samples)
        return [order[start : start + size] for start in range(0, len(order), size)]

    def prompts(self, context: SelectionContext, samples: Sequence[Sample]) -> list[Prompt]:
        """The prompts of the evaluation set, row by row, cut from the left."""
        longest = self._config.max_prompt_length
        return prompts_of(samples, lambda sample: context.template.encode_prompt(sample.prompt, sample.tools, longest))
