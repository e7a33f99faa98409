"""A judge model in vLLM's offline engine, in this process.

All answers of a round go to the engine in one call (``LLM.chat``), with prompts of :mod:`dataflex.rewards.judge` in
the judge's own chat template; equal prompts go once. The engine starts at the first round; ``vllm_release`` frees it
after each, so that judge and model in training take turns on one GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from dataflex.errors import RewardError
from dataflex.rewards.base import Failure, RewardBackend, settle
from dataflex.rewards.judge import REMINDER, SCORE_PATTERN, JudgeConfig, JudgePrompt, parse_score
from dataflex.types import RewardRequest
from dataflex.utils.progress import bars_shown
from dataflex.utils.vllm_engine import import_vllm, start_engine, stop_engine

logger = logging.getLogger(__name__)

REPLY_ROOM = 16
"""Tokens that a prompt must leave for the reply; {"score": 0.75} takes about ten."""

PLAIN_CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"
"""For judges without a chat template (base models): the prompt as it is."""


class VllmJudgeConfig(JudgeConfig):
    """Parameters of a judge that vLLM runs, in this process or as a server."""

    hf_model_name_or_path: str = Field(min_length=1, description="the judge: a folder or a hub id")
    vllm_tensor_parallel_size: int = Field(1, ge=1, description="GPUs that the judge is split over")
    vllm_temperature: float = Field(0.0, ge=0, description="sampling temperature; 0 is greedy")
    vllm_top_p: float = Field(0.9, gt=0, le=1, description="nucleus sampling")
    vllm_max_tokens: int = Field(512, ge=1, description="longest reply in tokens")
    vllm_top_k: int = Field(40, ge=-1, description="sample from the k likeliest tokens; 0 or -1: all")
    vllm_seed: int = Field(42, ge=0, description="seed of the sampling")
    vllm_max_model_len: int | None = Field(None, ge=1, description="longest prompt and reply; null: the model's own")
    vllm_gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="share of each GPU's memory to take")
    vllm_kv_cache_gib: float | None = Field(
        None, gt=0, description="GiB for keys and values; null: the rest of the GPU's share, 2 without a GPU"
    )
    vllm_dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field("auto", description="precision of the judge")
    vllm_enforce_eager: bool | None = Field(
        None, description="no compilation: a quicker start, slower replies; null: only without a GPU"
    )
    vllm_constrain_reply: bool = Field(
        True, description="let the judge write nothing but a score; base models and small ones need it"
    )
    vllm_release: bool = Field(False, description="stop the judge after each round; it starts anew in the next")
    trust_remote_code: bool = Field(False, description="run the Python code that comes with the judge")


class LocalVllmReward(RewardBackend[VllmJudgeConfig]):
    """Scores answers in [0, 1] with a judge model in vLLM.

    Example:
        >>> judge = LocalVllmReward(hf_model_name_or_path="meta-llama/Llama-3.1-8B-Instruct")
    """

    name: ClassVar[str] = "local_vllm"
    Config = VllmJudgeConfig
    _needed_by: ClassVar[str] = f"reward backend {name!r}"

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._prompt = JudgePrompt(self.config)
        self._engine: Any = None

    def check(self) -> None:
        """See that vLLM is installed; the engine is not started.

        Raises:
            RewardError: vLLM cannot be imported.
        """
        import_vllm(self._needed_by, RewardError)

    def score(self, requests: Sequence[RewardRequest]) -> list[float | None]:
        """Score answers; see :meth:`RewardBackend.score`.

        An answer whose prompt does not fit into the judge's context cannot be scored: it is never cut.

        Raises:
            RewardError: The engine does not start or fails; or an answer could not be scored and ``on_error`` is
                ``raise``.
        """
        with self._stats.timed():
            try:
                outcomes = self._outcomes(requests) if requests else []
            finally:
                if self.config.vllm_release:
                    self.close()
        return settle(outcomes, requests, backend=self.name, on_error=self.config.on_error, stats=self._stats)

    def close(self) -> None:
        """Stop the engine and free its memory. The next round starts another."""
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        stop_engine(engine)

    def _outcomes(self, requests: Sequence[RewardRequest]) -> list[float | Failure]:
        engine = self._started()
        marks = control_tokens(engine.get_tokenizer())
        prompts = [self._rendered(request, marks) for request in requests]
        unique = list(dict.fromkeys(prompt for prompt in prompts if isinstance(prompt, str)))
        self._stats.cache_hits += sum(isinstance(prompt, str) for prompt in prompts) - len(unique)
        known = self._judged(unique)
        return [prompt if isinstance(prompt, Failure) else known[prompt] for prompt in prompts]

    def _judged(self, prompts: list[str]) -> dict[str, float | Failure]:
        """Ask about all prompts, and again about those whose reply was not a score."""
        known: dict[str, float | Failure] = {}
        open_prompts = []
        for prompt in prompts:
            problem = self._misfit(prompt)
            if problem is None:
                open_prompts.append(prompt)
            else:
                known[prompt] = problem
        for attempt in range(self.config.parse_retries + 1):
            replies = self._replies([prompt + REMINDER * attempt for prompt in open_prompts], attempt)
            self._stats.requests += len(open_prompts)
            self._stats.retries += len(open_prompts) if attempt else 0
            for prompt, reply in zip(open_prompts, replies, strict=True):
                score = None if reply is None else parse_score(reply)
                shown = "cut off" if reply is None else repr(reply[:200])
                known[prompt] = Failure(f"the judge's reply is not a score: {shown}") if score is None else score
            open_prompts = [prompt for prompt in open_prompts if isinstance(known[prompt], Failure)]
            self._stats.unparsable += len(open_prompts)
        return known

    def _replies(self, prompts: list[str], attempt: int) -> list[str | None]:
        """One reply a prompt, None where it was cut off."""
        if not prompts:
            return []
        from vllm.sampling_params import StructuredOutputsParams

        from vllm import SamplingParams

        config, engine = self.config, self._engine
        sampling = SamplingParams(
            structured_outputs=StructuredOutputsParams(regex=SCORE_PATTERN) if config.vllm_constrain_reply else None,
            temperature=config.vllm_temperature,
            top_p=config.vllm_top_p,
            top_k=config.vllm_top_k,
            max_tokens=config.vllm_max_tokens,
            seed=config.vllm_seed + attempt,
        )
        conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
        try:
            outputs = engine.chat(conversations, sampling, use_tqdm=bars_shown(), chat_template=self._chat_template())
        except Exception as error:
            raise RewardError(f"vLLM failed on {len(prompts)} prompts: {type(error).__name__}: {error}") from error
        replies = [output.outputs[0] for output in outputs]
        # A cut number is another number: "0.9" may have been "0.95".
        return [None if reply.finish_reason == "length" else reply.text for reply in replies]

    def _rendered(self, request: RewardRequest, marks: frozenset[str]) -> str | Failure:
        try:
            return self._prompt.render(request, marks)
        except RewardError as error:
            return Failure(error.message, error)

    def _misfit(self, prompt: str) -> Failure | None:
        """Why the prompt cannot be asked, if so: its longest form must leave room for a reply."""
        longest = prompt + REMINDER * self.config.parse_retries
        tokenizer = self._engine.get_tokenizer()
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": longest}],
            chat_template=self._chat_template(),
            tokenize=False,
            add_generation_prompt=True,
        )
        tokens, limit = len(tokenizer.encode(text, add_special_tokens=False)), self._engine.model_config.max_model_len
        if tokens + REPLY_ROOM <= limit:
            return None
        return Failure(
            f"the judge's prompt has {tokens} tokens and {limit} fit with {REPLY_ROOM} for the reply "
            "(vllm_max_model_len, or the model's own limit)"
        )

    def _chat_template(self) -> str | None:
        return None if getattr(self._engine.get_tokenizer(), "chat_template", None) else PLAIN_CHAT_TEMPLATE

    def _started(self) -> Any:
        """The engine, started if it is not running."""
        if self._engine is not None:
            return self._engine
        config = self.config
        self._engine = start_engine(
            config.hf_model_name_or_path,
            needed_by=self._needed_by,
            error=RewardError,
            kv_cache_gib=config.vllm_kv_cache_gib,
            trust_remote_code=config.trust_remote_code,
            tensor_parallel_size=config.vllm_tensor_parallel_size,
            dtype=config.vllm_dtype,
            seed=config.vllm_seed,
            gpu_memory_utilization=config.vllm_gpu_memory_utilization,
            enforce_eager=config.vllm_enforce_eager,
            max_model_len=config.vllm_max_model_len,
        )
        if self._chat_template():
            logger.warning(
                "judge %r has no chat template (a base model?): it sees the bare prompt; an instruction-tuned judge "
                "follows the reply format more often",
                config.hf_model_name_or_path,
            )
        return self._engine


def control_tokens(tokenizer: Any) -> frozenset[str]:
    """Tokens of the judge's tokenizer that its chat template may give a meaning to.

    Added tokens that are words or white space are left out: they are ordinary text.
    """
    tokens = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    return frozenset(token for token in tokens if len(token) > 1 and not token.isspace() and not token.isalnum())
