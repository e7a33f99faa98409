"""Parameters of NICE."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dataflex.gradients.advantages import Baseline
from dataflex.gradients.similarity import Aggregate
from dataflex.rewards import resolve_reward
from dataflex.rewards.base import RewardBackend
from dataflex.rewards.problems import reward_problems
from dataflex.rollouts.vllm import VllmRolloutConfig
from dataflex.selectors.gradient import GradientConfig
from dataflex.utils.messages import Path

ReferenceAnswer = Literal["auto", "none", "sample", "fallback"]
"""When the reference answer counts as one more answer of its prompt."""


class NiceConfig(GradientConfig):
    """Parameters of NICE."""

    reward: str | dict[str, Any] | RewardBackend[Any] | Callable[..., Any] | None = Field(
        None,
        description="name of a metric or backend, {name, params}, a backend, or a function of (prediction, reference, "
        "metadata); before reward_model_backend",
    )
    reward_model_backend: str = Field("local_vllm", description="reward backend: local_vllm, api, metric or a plugin's")
    reward_backend_params: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="per backend or metric: its parameters"
    )
    mc_samples: int = Field(4, ge=1, description="answers M sampled for each evaluation prompt")
    max_new_tokens: int = Field(512, ge=1, description="longest answer, in tokens")
    generation_temperature: float = Field(1.0, gt=0, description="temperature T of the sampled distribution")
    generation_top_p: float = Field(1.0, gt=0, le=1, description="nucleus truncation; below 1 it biases the gradient")
    generation_top_k: int = Field(0, ge=0, description="top-k truncation; above 0 it biases the gradient")
    max_prompt_length: int = Field(4096, ge=1, description="longest prompt in tokens; cut from the left")
    rollout_batch_size: int = Field(16, ge=1, description="answers that are generated at once")
    rollout_backend: Literal["hf", "vllm"] = Field("hf", description="what draws the answers: transformers or vLLM")
    rollout_backend_params: VllmRolloutConfig = Field(
        default_factory=VllmRolloutConfig, description="parameters of rollout_backend: vllm"
    )
    replay_rewards: pathlib.Path | None = Field(
        None, description="output_dir or cache_dir of another run: its answers and rewards are used, none is asked for"
    )
    baseline: Baseline = Field(
        "leave_one_out",
        description="advantage: the reward itself (none), minus the mean of the prompt's other answers, or scaled",
    )
    reference_answer: ReferenceAnswer = Field(
        "auto",
        description="the reference answer as one more answer of its prompt, scored like any: never, always (sample), "
        "only where the sampled ones carry no signal (fallback); auto: sample if the evaluation set has references",
    )
    length_normalize: bool = Field(False, description="mean over an answer's tokens in place of the sum")
    aggregate: Aggregate = Field("mean", description="rule over the evaluation samples")
    on_no_signal: Literal["raise", "reference"] = Field(
        "raise", description="no prompt with a non-zero advantage: stop, or use the reference answers' gradient"
    )

    @field_validator("replay_rewards")
    @classmethod
    def _replay_exists(cls, value: pathlib.Path | None) -> pathlib.Path | None:
        if value is not None and not value.is_dir():
            raise ValueError(f"there is no folder {value.absolute()}: name another run's output_dir or cache_dir")
        return value

    @classmethod
    def find_nested_problems(cls, params: Mapping[str, Any]) -> list[tuple[Path, str]]:
        """Problems of the parameters of the reward backend and the prefilter."""
        own = reward_problems(params, str(cls.model_fields["reward_model_backend"].default))
        return [*super().find_nested_problems(params), *own]

    def find_idle(self) -> list[tuple[Path, str]]:
        """Parameters of what is not used: other backends, an engine that does not draw the answers."""
        found = super().find_idle()
        named = self.reward or self.reward_model_backend
        used = named if isinstance(named, str) else None
        if self.reward:
            found.append((("reward_model_backend",), "has no effect beside reward, which goes before it"))
        found += [
            (("reward_backend_params", name), f"has no effect: the reward is {used or 'the one of the key reward'}")
            for name in self.reward_backend_params
            if name != used
        ]
        if self.rollout_backend == "hf":
            found.append((("rollout_backend_params",), "has no effect with rollout_backend hf"))
        return found

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
