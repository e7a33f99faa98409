"""A reward model: a sequence classifier that reads a conversation with an answer and returns a number.

The conversation and the answer are rendered with the chat template of the model's tokenizer; a tokenizer without one
gets the last user turn and the answer as a pair, as rankers and early reward models are trained. The reward is

    sigmoid   1 / (1 + exp(-z_c))                the probability of label c on its own, in (0, 1)
    softmax   exp(z_c) / sum_j exp(z_j)          the probability of label c among all, in (0, 1)
    none      z_c                                the raw number, as models trained on comparisons give it

with the logits z and the label c that ``label`` names. Answers are scored in batches of similar length; an answer that
does not fit into the model's positions cannot be scored, it is never cut.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from dataflex.data.conversations import ConversationEncoder
from dataflex.errors import DataError, ModelError, RewardError
from dataflex.models.bounds import Bounds, Findings
from dataflex.models.model import DTYPES, Precision, load_tokenizer
from dataflex.models.weights import require_safetensors
from dataflex.rewards.base import Failure, RewardBackend, RewardConfig, settle
from dataflex.types import Message, RewardRequest
from dataflex.utils.foreign import foreign, model_errors
from dataflex.utils.progress import library_bars, progress_bar

Head = Literal["sigmoid", "softmax", "none"]


class ClassifierConfig(RewardConfig):
    """Parameters of a reward model."""

    model_name_or_path: str = Field(min_length=1, description="the reward model: a folder or a hub id")
    head: Head = Field("sigmoid", description="from logits to the reward: sigmoid, softmax or none (the raw logit)")
    label: int | str | None = Field(
        None, description="number or name of the label that is the reward; null: the only one, or the second of two"
    )
    batch_size: int = Field(8, ge=1, description="answers that are scored at once")
    max_length: int | None = Field(None, ge=1, description="longest text in tokens; null: the model's own")
    precision: Precision = Field("fp32", description="precision of the model's weights")
    device: str | None = Field(None, description="where the model runs; null: the first GPU if there is one")
    release: bool = Field(False, description="free the model after each round; it is loaded anew in the next")
    trust_remote_code: bool = Field(False, description="run the Python code that comes with the model")


class ClassifierReward(RewardBackend[ClassifierConfig]):
    """Scores answers with a sequence-classification reward model.

    Example:
        >>> reward = ClassifierReward(model_name_or_path="Skywork/Skywork-Reward-V2-Qwen3-0.6B", head="none")
    """

    name: ClassVar[str] = "classifier"
    Config = ClassifierConfig

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)
        self._model: Any = None

    def check(self) -> None:
        """See that the tokenizer and the label are there; weights are not loaded.

        Raises:
            RewardError: They are not.
        """
        _ = self._tokenizer
        self._label_index(self._model_config)

    def score(self, requests: Sequence[RewardRequest]) -> list[float | None]:
        """Score answers; see :meth:`RewardBackend.score`.

        Raises:
            RewardError: The model cannot be loaded; or an answer could not be scored and ``on_error`` is ``raise``.
        """
        with self._stats.timed():
            try:
                outcomes = self._outcomes(requests) if requests else []
            finally:
                if self.config.release:
                    self.close()
        return settle(outcomes, requests, backend=self.name, on_error=self.config.on_error, stats=self._stats)

    def close(self) -> None:
        """Free the model's memory. The next round loads it again."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _outcomes(self, requests: Sequence[RewardRequest]) -> list[float | Failure]:
        model = self._loaded()
        label, bounds = self._label_index(model.config), Bounds.of(model)
        limit = min((given for given in (self.config.max_length, bounds.positions) if given), default=None)
        outcomes: dict[int, float | Failure] = {}
        encoded: dict[int, list[int]] = {}
        for row, request in enumerate(requests):
            try:
                ids = self._encoded(request)
            except DataError as error:  # the reward model's template refuses the conversation
                outcomes[row] = Failure(error.message)
                continue
            if limit is not None and len(ids) > limit:
                outcomes[row] = Failure(f"conversation and answer have {len(ids)} tokens and {limit} fit (max_length)")
            elif bounds.inputs is not None and max(ids, default=0) >= bounds.inputs:
                outcomes[row] = Failure(f"token {max(ids)} is beyond the model's embedding of {bounds.inputs:,} rows")
            else:
                encoded[row] = ids
        order = sorted(encoded, key=lambda row: len(encoded[row]))
        with progress_bar(len(order), "scoring answers", unit="answer") as bar:
            for start in range(0, len(order), self.config.batch_size):
                rows = order[start : start + self.config.batch_size]
                values = self._rewards(model, [encoded[row] for row in rows], label)
                for row, value in zip(rows, values, strict=True):
                    outcomes[row] = value
                bar.update(len(rows))
        return [outcomes[row] for row in range(len(requests))]

    def _rewards(self, model: Any, texts: list[list[int]], label: int) -> list[float | Failure]:
        """Rewards of b texts."""
        batch = self._tokenizer.pad({"input_ids": texts}, return_tensors="pt").to(model.device)
        with torch.no_grad():
            logits = model(**batch).logits.double()  # (b, labels)
        return [
            value if torch.isfinite(torch.tensor(value)) else Failure(f"the model returned {value}")
            for value in activated(logits, self.config.head, label).tolist()
        ]

    def _encoded(self, request: RewardRequest) -> list[int]:
        """Token ids; what reads like a control token in an answer or a prompt is encoded as text."""
        if self._conversations is not None:
            answer: Message = {"role": "assistant", "content": request.prediction}
            return self._conversations.encode([*request.messages, answer])
        prompt = next((turn["content"] for turn in reversed(request.messages) if turn["role"] == "user"), "")
        return list(self._tokenizer(prompt, request.prediction, split_special_tokens=True)["input_ids"])

    @cached_property
    def _conversations(self) -> ConversationEncoder | None:
        return ConversationEncoder(self._tokenizer) if self._tokenizer.chat_template else None

    def _label_index(self, config: Any) -> int:
        labels = {str(name): int(index) for index, name in config.id2label.items()}
        label, count = self.config.label, len(labels)
        if label is None and count <= 2:
            return count - 1
        if isinstance(label, str) and label in labels:
            return labels[label]
        if isinstance(label, int) and 0 <= label < count:
            return label
        raise RewardError(
            f"the reward model {self.config.model_name_or_path!r} has the labels {', '.join(labels)}, "
            + ("and label does not say which is the reward" if label is None else f"and none is {label!r}"),
            hint="label: the name or number of the label whose probability is the reward",
        )

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            return load_tokenizer(self.config.model_name_or_path, trust_remote_code=self.config.trust_remote_code)
        except ModelError as error:
            raise RewardError(f"the reward model: {error.message}", hint=error.hint) from error

    @cached_property
    def _model_config(self) -> Any:
        from transformers import AutoConfig

        name = self.config.model_name_or_path
        with foreign(RewardError, f"the reward model {name!r} cannot be loaded", model_errors()):
            found = AutoConfig.from_pretrained(name, trust_remote_code=self.config.trust_remote_code)
        if Path(name).is_dir():
            require_safetensors(f"the reward model {name!r} cannot be loaded", Path(name), kind=RewardError)
        return found

    def _loaded(self) -> Any:
        """The model, loaded if it is not."""
        if self._model is not None:
            return self._model
        from transformers import AutoModelForSequenceClassification

        config = self.config
        what = f"the reward model {config.model_name_or_path!r} cannot be loaded"
        with foreign(RewardError, what, model_errors()), library_bars():
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                config.model_name_or_path,
                dtype=DTYPES[config.precision],
                trust_remote_code=config.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
            )
        model, facts = loaded
        if missing := sorted(facts["missing_keys"]):
            raise RewardError(
                f"{what}: {missing[0]} is not in its files and would be random",
                hint="name a trained reward model, not the language model that it comes from",
            )
        found = Findings()
        found.check_padding(Bounds.of(model), self._tokenizer)
        if found.problems:
            raise RewardError(f"the reward model {config.model_name_or_path!r}: {found.problems[0]}")
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self._tokenizer.pad_token_id  # it finds the last token by it
        device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(device).eval()
        return self._model


def activated(logits: Tensor, head: Head, label: int) -> Tensor:
    """Rewards ``(b,)`` from logits ``(b, labels)``; see the module's docstring."""
    if head == "softmax":
        return logits.softmax(dim=1)[:, label]
    return logits[:, label].sigmoid() if head == "sigmoid" else logits[:, label]
