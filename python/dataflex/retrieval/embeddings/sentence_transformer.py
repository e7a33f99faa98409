"""Sentence embeddings by the package sentence-transformers: one device, or one process a device."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from dataflex.errors import ModelError
from dataflex.models.identity import model_identity
from dataflex.models.weights import refuse_pickles
from dataflex.retrieval.embeddings.base import Encoder
from dataflex.retrieval.embeddings.coverage import Coverage, token_coverage

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class SentenceTransformerEncoder(Encoder):
    """A model of sentence-transformers, or any transformers encoder (mean pooling then).

    Several devices get a process each, started at the first call. Texts beyond the model's own longest sequence lose
    their end.

    Args:
        model: Local folder or hub id.
        devices: Devices to encode on; empty: all GPUs, else the CPU.
        precision: Precision of weights and activations; auto: bf16 on a GPU that has it (else fp16), fp32 on a CPU.
        batch_size: Texts that go through the model at once, on each device.
        trust_remote_code: Run the Python code that comes with the model.

    Raises:
        ModelError: The package is not installed.
    """

    method: ClassVar[str] = "sentence-transformer"

    def __init__(
        self,
        model: str,
        *,
        devices: Sequence[str] = (),
        precision: Precision = "auto",
        batch_size: int = 32,
        trust_remote_code: bool = False,
    ) -> None:
        self.model = model
        self.devices = list(devices) or all_devices()
        self.precision = resolve_precision(precision, self.devices)
        self.batch_size = batch_size
        self.trust_remote_code = trust_remote_code
        self._package = _import_package()
        self._loaded: Any = None
        self._pool: Any = None

    @property
    def dim(self) -> int:
        """Dimension of the vectors, seen on one text."""
        return int(self._start().encode(["dimension"], show_progress_bar=False).shape[1])

    def identity(self) -> dict[str, Any]:
        """Model and precision; a hub model is fetched first, for its revision."""
        facts = model_identity(self.model)
        if facts.get("revision", "") is None:
            self._start()
            facts = model_identity(self.model)
        return {"method": self.method, **facts, "precision": self.precision}

    def check(self) -> None:
        """Load the model."""
        self._start()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See :meth:`Encoder.encode`."""
        model = self._start()
        try:
            # bf16 has no numpy type: the package converts to float32 on the way out.
            vectors = model.encode(
                list(texts), batch_size=self.batch_size, show_progress_bar=False, **self._where(len(texts))
            )
        except RuntimeError as error:
            raise ModelError(
                f"{self.model!r} failed to encode {len(texts)} texts on {', '.join(self.devices)}: {error}",
                hint="out of memory: a smaller batch_size",
            ) from error
        return np.asarray(vectors, dtype=np.float32)

    def coverage(self, texts: Sequence[str]) -> Coverage | None:
        """See :meth:`Encoder.coverage`; None for static embeddings, whose tokenizers are not those of transformers."""
        model = self._start()
        if not isinstance(model.tokenizer, PreTrainedTokenizerBase):
            return None
        length = model.max_seq_length
        return token_coverage(texts, model.tokenizer, None if length in (None, math.inf) else int(length))

    def close(self) -> None:
        """Stop the processes and free the model."""
        if self._pool is not None:
            self._loaded.stop_multi_process_pool(self._pool)
        self._loaded = self._pool = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _where(self, count: int) -> dict[str, Any]:
        """Arguments that spread a call over the devices; chunks of equal size, so that batches are always the same."""
        if len(self.devices) == 1:
            return {}
        if self._pool is None:
            self._pool = self._loaded.start_multi_process_pool(self.devices)
        return {"pool": self._pool, "chunk_size": -(-count // len(self.devices))}

    def _start(self) -> Any:
        if self._loaded is not None:
            return self._loaded
        if Path(self.model).is_dir():
            refuse_pickles(f"cannot load the embedding model {self.model!r}", Path(self.model))
        try:
            self._loaded = self._package.SentenceTransformer(
                self.model,
                device=self.devices[0] if len(self.devices) == 1 else "cpu",
                trust_remote_code=self.trust_remote_code,
                model_kwargs={"dtype": DTYPES[self.precision], "use_safetensors": True},
            )
        except Exception as error:  # transformers, huggingface_hub, safetensors and pickle raise errors of their own
            first = str(error).strip().split("\n")[0]
            raise ModelError(
                f"cannot load the embedding model {self.model!r}: {type(error).__name__}: {first}",
                hint="embed_model names a local folder or a hub id of sentence-transformers or transformers",
            ) from error
        return self._loaded


def all_devices() -> list[str]:
    """Every GPU of this machine, or the CPU."""
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def resolve_precision(precision: Precision, devices: Sequence[str]) -> str:
    """The precision that ``auto`` stands for on these devices."""
    if precision != "auto":
        return precision
    if not all(device.startswith("cuda") for device in devices):
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _import_package() -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        raise ModelError(
            f"embed_method 'sentence-transformer' needs sentence-transformers, which cannot be imported: {error}",
            hint='pip install "dataflex-sdk[near]"',
        ) from error
    return sentence_transformers
