"""What batches of gradients cost beside arithmetic: padding, and the time of the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dataflex.data.collate import collate
from dataflex.gradients.exact import exact_pass
from dataflex.gradients.layout import by_length, padding
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.losses import mean_losses
from dataflex.models.model import add_lora, trainable_parameters, undisturbed
from dataflex.projection.projector import Projector
from dataflex.testing import stepped_optimizer, tiny_context, tiny_dataset

MOST_PADDING, MOST_HOST = 0.03, 150.0
"""Goals: share of the tokens, milliseconds of processor time a batch."""
ROWS = 20_000
LAYERS = 32


def padding_share(batch_tokens: int) -> float:
    """The share that padding adds to 20,000 rows of 20 to 2,048 tokens, 237 on average, as instructions have them."""
    lengths = np.clip(np.random.default_rng(0).lognormal(5.3, 0.6, ROWS), 20, 2048).astype(np.int64)
    return padding(by_length(lengths, batch_tokens), lengths)


def host_milliseconds(folder: Path, repeats: int = 5) -> dict[str, float]:
    """Processor time of a batch of four rows whose arithmetic is next to nothing: 448 LoRA tensors of a thin Llama."""
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=LAYERS, num_attention_heads=2
    )
    model = add_lora(LlamaForCausalLM(config), rank=8, alpha=16).eval()
    data = tiny_dataset(8, seed=0)
    context = tiny_context(folder, model=model, optimizer=stepped_optimizer(model, 2), train_dataset=data)
    features = SampleFeatures(
        context, data, Projector(1024), gradient_type="adam", adam_variant="adamw", batch_tokens=2048
    )
    features.prepare()
    count = sum(parameter.numel() for _, parameter in trainable_parameters(model))
    exact = exact_pass(context, features, torch.ones(1, count))
    rows = [0, 1, 2, 3]

    def plain() -> None:
        mean_losses(model, collate([data[row] for row in rows], 2)).mean().backward()
        model.zero_grad(set_to_none=True)

    ways: dict[str, Callable[[], object]] = {
        "plain step": plain,
        "exact": lambda: exact(rows),
        "features": lambda: features.features(rows),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    with undisturbed(model):
        for _ in range(1 + repeats):
            for name, way in ways.items():
                start = time.process_time()
                way()
                found[name].append(1000 * (time.process_time() - start))
    return {name: median(times[1:]) for name, times in found.items()}


def table(batch_tokens: int) -> str:
    """Markdown: each goal with what was measured.

    Args:
        batch_tokens: Padded tokens of a batch.
    """
    share = padding_share(batch_tokens)
    lines = [["goal", "measured", "met"], ["---"] * 3]
    lines.append([f"padding <= {MOST_PADDING:.0%} of the tokens", f"{share:.1%}", _met(share <= MOST_PADDING)])
    with TemporaryDirectory() as folder:
        host = host_milliseconds(Path(folder))
    for name in ("exact", "features"):
        goal = f"{name}: host's processor time <= {MOST_HOST:.0f} ms a batch of {14 * LAYERS} LoRA tensors"
        lines.append([goal, f"{host[name]:.0f} ms, plain step {host['plain step']:.0f}", _met(host[name] <= MOST_HOST)])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _met(met: bool) -> str:
    return "yes" if met else "no"
