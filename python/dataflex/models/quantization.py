"""Base weights in 4 or 8 bits, on which an adapter is trained: QLoRA (arXiv 2305.14314), LLM.int8() (arXiv 2208.07339).

bitsandbytes quantises the linear layers but the output head as they are loaded. Adapters stay in float32, and the
gradients of single rows are those of the adapters' own layers, so no rule of :mod:`dataflex.gradients` changes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from dataflex.errors import ModelError

_BLOCK = 64
"""Values of a 4-bit weight that share a scale."""


@dataclass(frozen=True)
class Quantization:
    """How a base model's weights are stored.

    Attributes:
        bits: Of a value.
        kind: The 4-bit code: ``nf4`` (normal float) or ``fp4``.
        double: Quantise the scales of the 4-bit blocks, too.
    """

    bits: Literal[4, 8]
    kind: Literal["nf4", "fp4"] = "nf4"
    double: bool = True

    def settings(self, dtype: torch.dtype) -> dict[str, Any]:
        """Arguments of transformers' ``from_pretrained``.

        Args:
            dtype: Of the computation with 4-bit weights.

        Raises:
            ModelError: bitsandbytes is not installed.
        """
        if find_spec("bitsandbytes") is None:
            raise ModelError(
                "quantization_bit needs bitsandbytes, which is not installed", hint='pip install "dataflex-sdk[quant]"'
            )
        config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=self.bits == 4,
            load_in_8bit=self.bits == 8,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=dtype,
        )
        return {"quantization_config": config, "device_map": {"": _device()}}

    def saved_bytes(self, model: nn.Module) -> int:
        """Bytes that the weights of a model on torch's meta device lose by it, to a few hundredths of what is left."""
        head = getattr(model, "get_output_embeddings", lambda: None)()
        layers = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not head]
        scales = 0.0 if self.bits == 8 else (1 if self.double else 4) / _BLOCK
        sizes = sum(part.weight.numel() * (part.weight.element_size() - self.bits / 8 - scales) for part in layers)
        return int(sizes)


def keep_weights(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first forward pass in eval mode.

    It does so on CPUs with AVX512-BF16, rounding the scales to bfloat16: a model that has been evaluated would be
    another one, and a resumed run another run.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # a plain attribute, not a tensor


def is_quantized(model: nn.Module) -> bool:
    """Whether a transformers model was loaded with quantised weights."""
    return getattr(model, "quantization_method", None) is not None


def _device() -> str:
    """Where this process's model lies: quantised weights stay where they were loaded."""
    if not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
