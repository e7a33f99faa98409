"""Answers drawn by vLLM, with the adapter as it is now.

vLLM holds the base model; each round the adapter in training is written to disk (one atomic directory, removed
afterwards) and goes along with every prompt as a LoRA request of its own number, so that nothing of an earlier round
is used again. An answer has its own random numbers, seeded as those of :mod:`dataflex.rollouts.hf`; they are other
numbers, so that the two back ends agree in distribution and not answer by answer.

The recorded log-probabilities are those of vLLM's own arithmetic, after temperature and truncation. A few answers of
each round are computed again by the model in training, which catches a base model, an adapter or a precision that is
not the trainee's before its gradient is taken.

Written for vLLM 0.32 (``LLM.generate``, ``LoRARequest``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from peft import LoraConfig, PeftModel
from pydantic import Field
from torch import nn
from transformers import PreTrainedTokenizerBase

from dataflex.errors import RolloutError
from dataflex.models.bounds import Bounds
from dataflex.models.model import base_model
from dataflex.models.quantization import is_quantized
from dataflex.plugins.configurable import ComponentConfig
from dataflex.rollouts.answers import Prompt, Rollout, Sampling, answer_key, rollout
from dataflex.rollouts.comparison import compare_answers
from dataflex.types import Autocast
from dataflex.utils.files import atomic_directory
from dataflex.utils.progress import bars_shown
from dataflex.utils.vllm_engine import import_vllm, start_engine, stop_engine

Precision = Literal["float32", "float16", "bfloat16"]

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts as ``max_lora_rank``."""

_NEEDED_BY = "rollout_backend: vllm"
_USE_HF = "rollout_backend: hf draws from any model"


class VllmRolloutConfig(ComponentConfig):
    """Parameters of the engine that draws the policy's answers."""

    model_name_or_path: str | None = Field(None, description="the base model; null: where the trainee was loaded from")
    dtype: Precision | None = Field(None, description="precision; null: that of the trainee's base model")
    gpu_memory_utilization: float = Field(0.4, gt=0, le=1, description="share of each GPU's memory to take")
    kv_cache_gib: float | None = Field(
        None, gt=0, description="GiB for keys and values; null: the rest of the GPU's share, 2 without a GPU"
    )
    max_model_len: int | None = Field(None, ge=1, description="longest prompt and answer; null: what the round needs")
    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that the model is split over")
    enforce_eager: bool | None = Field(
        None, description="no compilation: a quicker start, slower answers; null: only without a GPU"
    )
    release: bool = Field(False, description="stop the engine after each round; it starts anew in the next")
    trust_remote_code: bool = Field(False, description="run the Python code that comes with the model")


class VllmSampler:
    """Draws answers with vLLM; the engine starts at the first round.

    Args:
        config: Parameters of the engine.
    """

    def __init__(self, config: VllmRolloutConfig) -> None:
        self.config = config
        self._engine: Any = None
        self._length = 0
        self._rounds = 0

    def check(self, model: nn.Module) -> None:
        """See that vLLM is installed and can take the model's adapter; no engine is started.

        Raises:
            RolloutError: It cannot.
        """
        import_vllm(_NEEDED_BY, RolloutError)
        _lora_config(model)
        self._base(model)

    def sample_answers(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        answers_per_prompt: int,
        stop_token_ids: Collection[int],
        seed: int,
        step: int,
        autocast: Autocast,
        folder: Path,
    ) -> list[Rollout]:
        """Draw ``answers_per_prompt`` answers of every prompt from the model as it is now.

        Args:
            model: The policy, a peft model with one LoRA adapter; left undisturbed.
            tokenizer: Decodes answers.
            prompts: q prompts.
            sampling: Distribution and length.
            answers_per_prompt: M.
            stop_token_ids: Tokens that end an answer.
            seed: Seed of the answers, together with ``step``.
            step: Optimizer steps taken.
            autocast: The trainer's forward context, for the answers that are computed again.
            folder: Where the adapter is put while the answers are drawn.

        Returns:
            q * M answers, ordered by prompt, then by answer number.

        Raises:
            RolloutError: The engine does not start or fails, or its model is not the one in training.
        """
        jobs = [(prompt, answer) for prompt in prompts for answer in range(answers_per_prompt)]
        keys = [answer_key(seed, step, prompt, answer) for prompt, answer in jobs]
        adapter = folder / f"vllm-adapter-{os.getpid()}"  # each rank has its own
        try:
            engine = self._started(model, prompts, sampling)
            outputs = self._generated(
                engine, model, adapter, [prompt for prompt, _ in jobs], keys, sampling, stop_token_ids
            )
        finally:
            shutil.rmtree(adapter, ignore_errors=True)
            if self.config.release:
                self.close()
        answers = [
            _answer(prompt.sample_id, number, output, stop_token_ids, tokenizer)
            for (prompt, number), output in zip(jobs, outputs, strict=True)
        ]
        compare_answers(
            model,
            [prompt for prompt, _ in jobs],
            answers,
            sampling,
            autocast,
            drawn_by="vLLM",
            hint=f"is {self._base(model)!r} the base model that is being trained, and is it unchanged? {_USE_HF}",
            dtype=getattr(torch, self._dtype(model)),
        )
        return answers

    def close(self) -> None:
        """Stop the engine and free its memory. The next round starts another."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            stop_engine(engine)

    def _generated(
        self,
        engine: Any,
        model: nn.Module,
        adapter: Path,
        prompts: Sequence[Prompt],
        keys: Sequence[bytes],
        sampling: Sampling,
        stop_token_ids: Collection[int],
    ) -> list[Any]:
        from vllm.lora.request import LoRARequest

        from vllm import SamplingParams

        with atomic_directory(adapter) as staged:
            cast(PeftModel, model).save_pretrained(str(staged))
        self._rounds += 1
        params = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=sorted(stop_token_ids),
                ignore_eos=True,  # what ends an answer is stop_token_ids alone, as in dataflex.rollouts.hf
                seed=int.from_bytes(key[:8], "big") >> 1,
                logprobs=0,
                detokenize=False,
            )
            for key in keys
        ]
        try:
            return list(
                engine.generate(
                    [{"prompt_token_ids": prompt.token_ids} for prompt in prompts],
                    params,
                    use_tqdm=bars_shown(),
                    lora_request=LoRARequest(f"round-{self._rounds}", self._rounds, str(adapter.resolve())),
                )
            )
        except Exception as error:
            raise RolloutError(
                f"vLLM failed on {len(prompts)} answers: {type(error).__name__}: {error}", hint=_USE_HF
            ) from error

    def _started(self, model: nn.Module, prompts: Sequence[Prompt], sampling: Sampling) -> Any:
        """The engine, started anew if these prompts are longer than it was started for."""
        config, lora = self.config, _lora_config(model)
        length = config.max_model_len or _needed_length(model, prompts, sampling)
        if self._engine is not None and length <= self._length:
            return self._engine
        self.close()
        self._engine = start_engine(
            self._base(model),
            needed_by=_NEEDED_BY,
            error=RolloutError,
            kv_cache_gib=config.kv_cache_gib,
            trust_remote_code=config.trust_remote_code,
            tensor_parallel_size=config.tensor_parallel_size,
            dtype=self._dtype(model),
            gpu_memory_utilization=config.gpu_memory_utilization,
            enforce_eager=config.enforce_eager,
            max_model_len=length,
            generation_config="vllm",  # the model's own generation defaults are not the policy
            logprobs_mode="processed_logprobs",
            enable_lora=True,
            max_loras=1,
            max_lora_rank=next(rank for rank in _RANKS if rank >= _largest_rank(lora)),
        )
        self._length = length
        return self._engine

    def _base(self, model: nn.Module) -> str:
        name = self.config.model_name_or_path or str(getattr(base_model(model), "name_or_path", "") or "")
        if not name:
            raise RolloutError(
                "vLLM loads the base model itself, and the model in training does not say where it came from",
                hint="rollout_backend_params: {model_name_or_path: ...}; or rollout_backend: hf",
            )
        return name

    def _dtype(self, model: nn.Module) -> Precision:
        if self.config.dtype is not None:
            return self.config.dtype
        frozen = [parameter.dtype for parameter in base_model(model).parameters() if not parameter.requires_grad]
        name = str(frozen[0]).removeprefix("torch.")
        if name not in get_args(Precision):
            raise RolloutError(f"vLLM has no weights in {name}", hint=_USE_HF)
        return cast(Precision, name)


def _answer(
    sample_id: str, number: int, output: Any, stop_token_ids: Collection[int], tokenizer: PreTrainedTokenizerBase
) -> Rollout:
    completion = output.outputs[0]
    tokens = [int(token) for token in completion.token_ids]
    log_probs = [float(step[token].logprob) for token, step in zip(tokens, completion.logprobs, strict=True)]
    return rollout(sample_id, number, tokens, log_probs, stop_token_ids, tokenizer)


def _lora_config(model: nn.Module) -> LoraConfig:
    """The configuration of the model's only adapter.

    Raises:
        RolloutError: There is not exactly one LoRA adapter, or more than LoRA is trained.
    """
    configs = list(model.peft_config.values()) if isinstance(model, PeftModel) else []
    if len(configs) != 1 or not isinstance(configs[0], LoraConfig):
        raise RolloutError("vLLM can only take over a model with one LoRA adapter", hint=_USE_HF)
    if is_quantized(base_model(model)):
        raise RolloutError("vLLM would draw from the weights before they were quantised", hint=_USE_HF)
    others = [name for name, value in model.named_parameters() if value.requires_grad and ".lora_" not in name]
    if others or configs[0].use_dora:
        what = "DoRA" if configs[0].use_dora else f"trained parameters that are not LoRA's ({others[0]}, ...)"
        raise RolloutError(f"vLLM cannot take over {what}", hint=_USE_HF)
    if _largest_rank(configs[0]) > _RANKS[-1]:
        raise RolloutError(f"vLLM takes LoRA ranks up to {_RANKS[-1]}, got {_largest_rank(configs[0])}", hint=_USE_HF)
    return configs[0]


def _largest_rank(config: LoraConfig) -> int:
    ranks: dict[str, int] = config.rank_pattern or {}
    return max([config.r, *ranks.values()])


def _needed_length(model: nn.Module, prompts: Sequence[Prompt], sampling: Sampling) -> int:
    """Tokens of the longest prompt and answer.

    Raises:
        RolloutError: The model has fewer positions.
    """
    needed = max(len(prompt.token_ids) for prompt in prompts) + sampling.max_new_tokens
    limit = Bounds.of(model).positions
    if limit is not None and needed > limit:
        raise RolloutError(
            f"prompt and answer may have {needed} tokens, and the model has {limit} positions",
            hint="a smaller max_prompt_length or max_new_tokens",
        )
    return needed
