"""What a reader of the documentation has at hand: a folder with a model, data and what the pages name."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from dataflex.curriculum.schedule import Schedule
from dataflex.data import ChatTemplate, tokenize
from dataflex.data.collate import collate
from dataflex.models.losses import mean_losses
from dataflex.models.model import add_lora
from dataflex.projection.adam import AdamMoments
from dataflex.testing import tiny_model, tiny_samples, tiny_tokenizer
from dataflex.training.arguments import TrainingArguments
from dataflex.training.trainer import Trainer
from dataflex.types import Sample
from helpers.scripts import ROOT

MODEL = "models/SmolLM2-135M-Instruct"


def reader_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a chat template of its own, as an instruction model's has."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = ChatTemplate.load("chatml", tokenizer).source
    return tokenizer


def row_of(sample: Sample) -> dict[str, Any]:
    """A sample as prompt and completion."""
    return {"prompt": sample.messages[0]["content"], "completion": sample.reference, **sample.metadata}


def train_rows() -> list[dict[str, Any]]:
    """40 candidates."""
    return [row_of(sample) for sample in tiny_samples(40, seed=0)]


def eval_rows() -> list[dict[str, Any]]:
    """Four questions, which :func:`taught_model` answers right sometimes."""
    return [row_of(sample) for sample in tiny_samples(4, seed=9)]


def taught_model(likely: float = 0.5, samples: Sequence[Sample] | None = None, steps: int = 300) -> LlamaForCausalLM:
    """A tiny model that gives the references of some samples with a probability of about ``likely`` each.

    Args:
        likely: That probability; what is reached after ``steps`` may be less.
        samples: The samples; None: those of :func:`eval_rows`.
        steps: Most optimizer steps.
    """
    model = tiny_model(max_position_embeddings=2048)
    template = ChatTemplate.load("chatml", tiny_tokenizer())
    dataset = tokenize(tiny_samples(4, seed=9) if samples is None else samples, template, 128, progress=False)
    batch = collate(list(dataset), 2)
    answer_tokens = dataset.report.label_tokens / len(dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = mean_losses(model, batch).mean()  # nats a token
        if float(loss.detach()) * answer_tokens < -np.log(likely):
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def furnish(folder: Path) -> None:
    """Put in ``folder`` what the pages name: a model, the examples, rows of one's own, checkpoints of a warm-up run."""
    model, tokenizer = taught_model(), reader_tokenizer()
    model.save_pretrained(folder / MODEL)
    tokenizer.save_pretrained(folder / MODEL)
    (folder / "examples").symlink_to(ROOT / "examples")
    for name, rows in (("train.jsonl", train_rows()), ("mine.jsonl", train_rows()), ("target.jsonl", eval_rows())):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "my_rewards.py").write_text(
        "def is_short(prediction, reference, metadata):\n    return float(len(prediction) < 80)\n", encoding="utf-8"
    )
    (folder / "top_indices.npy").touch()  # what `dataflex near` leaves; read by training alone
    warm_up(folder / "warmup")


def install_example_plugin(folder: Path) -> list[str]:
    """Make the example plugin known to a process that has ``folder`` on its path; returns what else must be there."""
    example = ROOT / "examples" / "plugin"
    if not example.is_dir():
        return []
    project = tomllib.loads((example / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / "example_plugin-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0\n", encoding="utf-8")
    lines = [f"{name} = {target}" for name, target in project["entry-points"]["dataflex"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[dataflex]", *lines]) + "\n", encoding="utf-8")
    return [str(example / "src")]


def warm_up(output_dir: Path) -> None:
    """Checkpoints of a run over the reader's rows: short of its 400 steps, but named as on the pages."""
    Trainer(
        reader_model(taught_model()),
        reader_tokenizer(),
        train_rows(),
        schedule=Schedule(warmup_step=4),
        args=TrainingArguments(output_dir=output_dir, save_steps=1, plot_loss=False),
    ).train()
    for step in (1, 2, 3, 4):
        (output_dir / f"checkpoint-{step}").rename(output_dir / f"checkpoint-{step}00")


def reader_model(base: LlamaForCausalLM) -> PeftModel:
    """The base model with a new adapter, which changes nothing yet."""
    return add_lora(base, rank=4, alpha=8)


def names(folder: Path) -> dict[str, Any]:
    """The Python names that the pages use without making them."""
    parameters = 1000
    generator = torch.Generator().manual_seed(0)
    moments = AdamMoments(
        exp_avg=0.01 * torch.randn(parameters, generator=generator),
        exp_avg_sq=0.1 + torch.rand(parameters, generator=generator),
        step=10,
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    return {
        "__name__": "__page__",
        "model": reader_model(LlamaForCausalLM.from_pretrained(folder / MODEL)),
        "tokenizer": reader_tokenizer(),
        "train_rows": train_rows(),
        "eval_rows": eval_rows(),
        "gradients": torch.randn(4, parameters, generator=generator),
        "moments": moments,
    }
