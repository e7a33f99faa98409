"""Per-sample LoRA gradients of the quickstart's model on the quickstart's data, and the moments of a short warm-up."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from dataflex.data.collate import Batch, collate
from dataflex.data.dataset import tokenize
from dataflex.data.sources import load_samples
from dataflex.data.templates import ChatTemplate
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import sample_gradient, sample_loss
from dataflex.models.model import add_lora, load_model, load_tokenizer, undisturbed
from measuring.vectors import Vectors

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
RANK, TARGET = 4, ("q_proj", "v_proj")
WARM_UP_STEPS, BATCH, LEARNING_RATE = 10, 4, 1e-4
CUTOFF, VOCABULARY, LENGTH = 128, 512, 48


def lora_gradients(rows: int) -> tuple[str, Vectors, Vectors]:
    """A name for where they come from, and ``rows`` gradients, raw and Adam-normalised.

    They are those of SmolLM2-135M-Instruct if examples/quickstart/fetch_model.py has fetched it, else of a small
    Llama with random weights.
    """
    torch.manual_seed(0)
    count = WARM_UP_STEPS * BATCH + rows
    fetch_model = _fetch_model()
    if fetch_model.is_complete(folder := fetch_model.model_folder()):
        name, model, batches = fetch_model.NAME, load_model(str(folder)), _quickstart_batches(folder, count)
    else:
        print(f"{fetch_model.NAME} is not there (python examples/quickstart/fetch_model.py): a random Llama serves")
        name, model, batches = "random Llama", _random_llama(), _random_batches(count)
    adapted = add_lora(model, rank=RANK, target=TARGET)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=LEARNING_RATE)
    _warm_up(adapted, optimizer, batches[rows:])
    with undisturbed(adapted):
        grads = torch.stack([sample_gradient(adapted, batch, nullcontext) for batch in batches[:rows]])
    moments = adam_moments(adapted, optimizer)
    return name, Vectors(grads), Vectors(grads, moments)


def _warm_up(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: Sequence[Batch]) -> None:
    model.train()
    for step in range(WARM_UP_STEPS):
        optimizer.zero_grad()
        for batch in batches[step * BATCH : (step + 1) * BATCH]:
            (sample_loss(model, batch) / BATCH).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _quickstart_batches(folder: Path, count: int) -> list[Batch]:
    tokenizer = load_tokenizer(str(folder))
    samples = load_samples(str(QUICKSTART / "data" / "train.jsonl"), max_samples=count)
    examples = tokenize(samples, ChatTemplate.load("chatml", tokenizer), CUTOFF, progress=False)
    return [collate([example], int(tokenizer.pad_token_id)) for example in examples]


def _random_batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(VOCABULARY, (1, LENGTH), generator=generator) for _ in range(count)]
    return [Batch(row, torch.ones_like(row), row) for row in ids]


def _random_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def _fetch_model() -> Any:
    """The quickstart's script, which is no package."""
    spec = importlib.util.spec_from_file_location("fetch_model", QUICKSTART / "fetch_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
