"""Small, deterministic, offline stand-ins: those that plugin authors test with."""

from dataflex.testing.tiny import (
    tiny_dataset,
    tiny_lora,
    tiny_model,
    tiny_samples,
    tiny_tokenizer,
)

__all__ = ["tiny_dataset", "tiny_lora", "tiny_model", "tiny_samples", "tiny_tokenizer"]
