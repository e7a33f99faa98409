"""Sentence embeddings by vLLM's pooling engine, in this process.

Written for vLLM 0.32: ``LLM(runner="pooling")`` and ``LLM.embed``. All texts of a call go in at once, vLLM batches
them itself; a text that is longer than the model's context loses its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import ModelError
from dataflex.models.identity import model_identity
from dataflex.retrieval.embeddings.base import Encoder
from dataflex.retrieval.embeddings.coverage import Coverage, token_coverage
from dataflex.utils.vllm_engine import import_vllm, start_engine, stop_engine

_NEEDED_BY = "embed_method: vllm"
_DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class VllmEncoder(Encoder):
    """An embedding model in vLLM.

    Args:
        model: Local folder or hub id.
        precision: auto is the model's own.
        batch_size: Texts that the engine works on at once.
        trust_remote_code: Run the Python code that comes with the model.

    Raises:
        ModelError: vLLM is not installed.
    """

    method: ClassVar[str] = "vllm"

    def __init__(
        self,
        model: str,
        *,
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
        batch_size: int = 32,
        trust_remote_code: bool = False,
    ) -> None:
        self.model = model
        self.dtype = _DTYPES[precision]
        self.batch_size = batch_size
        self.trust_remote_code = trust_remote_code
        import_vllm(_NEEDED_BY, ModelError)
        self._engine: Any = None

    @property
    def dim(self) -> int:
        """Dimension of the vectors, seen on one text."""
        return int(self.encode(["dimension"]).shape[1])

    def identity(self) -> dict[str, Any]:
        """Model and precision; a hub model is fetched first, for its revision."""
        facts = model_identity(self.model)
        if facts.get("revision", "") is None:
            self._started()
            facts = model_identity(self.model)
        return {"method": self.method, **facts, "precision": self.dtype}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`Encoder.encode`."""
        engine = self._started()
        try:
            outputs = engine.embed(list(texts), use_tqdm=False, tokenization_kwargs={"truncate_prompt_tokens": -1})
        except Exception as error:
            raise ModelError(
                f"vLLM failed to embed {len(texts)} texts with {self.model!r}: {type(error).__name__}: {error}",
                hint="embed_method: sentence-transformer encodes every model of that package",
            ) from error
        return np.asarray([output.outputs.embedding for output in outputs], dtype=np.float32)

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """See :meth:`Encoder.coverage`."""
        engine = self._started()
        return token_coverage(texts, engine.get_tokenizer(), int(engine.model_config.max_model_len))

    def close(self) -> None:
        """Stop the engine and free its memory."""
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        stop_engine(engine)

    def _started(self) -> Any:
        if self._engine is None:
            self._engine = start_engine(
                self.model,
                needed_by=_NEEDED_BY,
                error=ModelError,
                kv_cache_gib=None,
                enforce_eager=None,
                runner="pooling",
                dtype=self.dtype,
                max_num_seqs=self.batch_size,
                trust_remote_code=self.trust_remote_code,
            )
        return self._engine
