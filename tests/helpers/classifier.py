"""A sequence classifier on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from dataflex.testing import tiny_tokenizer

TEMPLATE = "{% for message in messages %}<|im_start|>{{ message.role }}: {{ message.content }}<|im_end|>{% endfor %}"


def save_classifier(
    folder: Path, labels: int, *, template: str | None = TEMPLATE, seed: int = 0, positions: int = 128
) -> str:
    """Write a tiny Llama with a classification head and its tokenizer.

    Args:
        folder: Where they go.
        labels: Outputs of the head.
        template: Chat template of the tokenizer; None: it has none.
        seed: Seed of the weights.
        positions: Longest input in tokens.
    """
    tokenizer = tiny_tokenizer(chat_template=template)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=positions,
            initializer_range=0.3,
            num_labels=labels,
            pad_token_id=None,
        )
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
