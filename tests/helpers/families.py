"""Tiny random models of several families, with LoRA or trained in full."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from dataflex.testing import tiny_tokenizer

_VOCABULARY = len(tiny_tokenizer())
_SIZES = {"vocab_size": _VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
CONFIGS = {
    "llama": LlamaConfig(**_SIZES, **_HEADS, **_TOKENS, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**_SIZES, **_HEADS, **_TOKENS, tie_word_embeddings=False),  # biases
    "qwen3": Qwen3Config(**_SIZES, **_HEADS, **_TOKENS, head_dim=8),  # norms of each head
    "gemma": GemmaConfig(**_SIZES, **_HEADS, **_TOKENS, head_dim=8),  # tied weights, scaled embeddings, (1 + w) norms
    "gpt2": GPT2Config(vocab_size=_VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, **_TOKENS),
}


def family_model(family: str, **overrides: Any) -> PreTrainedModel:
    """All parameters trainable and generic (no zeros, no ones), float32, eval mode."""
    config = type(CONFIGS[family])(**(CONFIGS[family].to_dict() | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def family_lora(family: str, **lora: Any) -> PeftModel:
    """LoRA on all linear layers but the head, B not zero, float32, eval mode."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    settings["fan_in_fan_out"] = family == "gpt2"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(family_model(family), LoraConfig(**(settings | lora)))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
    assert isinstance(model, PeftModel)
    return model.eval()
