"""Which encoder a configuration means."""

from __future__ import annotations

import importlib.util
import logging

import torch

from dataflex.config.near import EmbedMethod, EncoderFields
from dataflex.retrieval.embeddings.base import Encoder

logger = logging.getLogger(__name__)


def open_encoder(model: str, settings: EncoderFields) -> Encoder:
    """The encoder that the settings ask for; nothing is loaded yet.

    Args:
        model: Local folder or hub id.
        settings: Method, batch size, devices, precision.

    Raises:
        ModelError: The package that it needs is not installed.
    """
    method = settings.embed_method
    if method == "auto":
        method, reason = automatic_method()
        logger.info("embedding with %s (%s)", method, reason)
    if method == "vllm":
        from dataflex.retrieval.embeddings.vllm import VllmEncoder

        return VllmEncoder(
            model,
            precision=settings.embed_precision,
            batch_size=settings.batch_size,
            trust_remote_code=settings.trust_remote_code,
        )
    from dataflex.retrieval.embeddings.sentence_transformer import SentenceTransformerEncoder

    named = settings.embed_device.split(",") if settings.embed_device else []
    return SentenceTransformerEncoder(
        model,
        devices=[device.strip() for device in named],
        precision=settings.embed_precision,
        batch_size=settings.batch_size,
        trust_remote_code=settings.trust_remote_code,
    )


def automatic_method() -> tuple[EmbedMethod, str]:
    """The method that ``auto`` takes here, and why."""
    if importlib.util.find_spec("vllm") is None:
        return "sentence-transformer", "vllm is not installed"
    if not torch.cuda.is_available():
        return "sentence-transformer", "there is no GPU"
    return "vllm", "it is installed and there is a GPU"
