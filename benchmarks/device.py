"""Gradient features and exact scores of a large model on this machine's GPU, and a run of NICE there.

    python benchmarks/device.py model                # a Llama of 1.2 billion random parameters with LoRA, in bfloat16
    python benchmarks/device.py nice                 # a tiny model is trained on what NICE selects
    python benchmarks/device.py model --device cpu --size tiny

``model`` times in turns, on the same batches of random tokens as long as instructions are: the plain forward and
backward pass, features (Adam normalisation and sjlt projection included) and exact inner products with one direction.
Rows a second, ratios inside a round, peaks of memory above the weights, and the time of a batch of four rows of 16
tokens, whose arithmetic is next to nothing: what the host needs for its calls. It ends with exit code 1 if the squared
norms of features and the exact ones differ by more than a projection to k dimensions can explain. Before them the
batched rules are compared with plain gradients, as in every run.

``make gpu`` runs both; weights are random, so nothing is downloaded.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import dataflex as df
from dataflex.data import TokenizedDataset
from dataflex.data.collate import collate
from dataflex.gradients.exact import exact_pass
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.losses import mean_losses
from dataflex.models.model import add_lora, trainable_parameters, undisturbed
from dataflex.projection.projector import Projector
from dataflex.testing import tiny_context, tiny_lora, tiny_model, tiny_samples, tiny_tokenizer
from dataflex.utils.files import write_json
from measuring.machine import describe, facts
from measuring.memory import TensorMemory
from measuring.timing import BASELINE, OURS, Contender, measure, paired_ratio

PLAIN, FEATURES, EXACT = "plain step", "features", "exact"
BILLION = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
TINY = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES: dict[str, dict[str, Any]] = {
    "1b": {"config": BILLION, "rows": 256, "longest": 1024, "batch_tokens": 16_384, "rank": 16, "dim": 4096},
    "tiny": {"config": TINY, "rows": 12, "longest": 32, "batch_tokens": 128, "rank": 4, "dim": 1024},
}
SHORT_ROWS, SHORT_TOKENS, SHORT_REPEATS = 4, 16, 5
MOST_DEVIATIONS = 6.0  # of |phi|^2 / |u|^2 from 1, in standard deviations sqrt(2 / k); one in 10^8 rows is beyond


class Work:
    """Model, moments and rows that the three ways share.

    Args:
        size: A name of :data:`SIZES`.
        device: Where everything lies.
    """

    def __init__(self, size: str, device: torch.device) -> None:
        given = SIZES[size]
        torch.manual_seed(0)
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**given["config"])).to(torch.bfloat16)
        self.model = add_lora(model, rank=given["rank"], alpha=2 * given["rank"]).to(device).eval()
        self.device, self.dim = device, given["dim"]
        self.autocast: Callable[[], AbstractContextManager[None]] = partial(
            torch.autocast, device.type, dtype=torch.bfloat16
        )
        vocabulary = given["config"]["vocab_size"]
        self.data = random_rows(given["rows"], given["longest"], vocabulary)
        self.short = random_rows(SHORT_ROWS, SHORT_TOKENS, vocabulary, shortest=SHORT_TOKENS)
        self.parameters = sum(value.numel() for _, value in trainable_parameters(self.model))
        optimizer = torch.optim.AdamW((value for _, value in trainable_parameters(self.model)), lr=1e-3)
        for step in range(2):
            self.plain(self.data, range(4 * step, 4 * step + 4))
            optimizer.step()
            optimizer.zero_grad()
        self.context = tiny_context(Path(), model=self.model, optimizer=optimizer, autocast=self.autocast)
        self.passes = {name: self.ways(data, given["batch_tokens"]) for name, data in self.sets().items()}

    def sets(self) -> dict[str, TokenizedDataset]:
        """The rows that are timed, and the few short ones."""
        return {"rows": self.data, "short": self.short}

    def plain(self, data: TokenizedDataset, rows: Any) -> None:
        """Forward and backward pass of the mean loss."""
        batch = collate([data[row] for row in rows], 0).to(self.device)
        with self.autocast():
            loss = mean_losses(self.model, batch).mean()
        loss.backward()

    def ways(self, data: TokenizedDataset, batch_tokens: int) -> dict[str, Callable[[], Any]]:
        """The three passes over all rows of a set, by name."""
        features = SampleFeatures(
            self.context,
            data,
            Projector(self.dim),
            gradient_type="adam",
            adam_variant="adamw",
            batch_tokens=batch_tokens,
        )
        direction = torch.randn(1, self.parameters, generator=torch.Generator().manual_seed(0)).to(self.device)
        exact = exact_pass(self.context, features, direction)
        features.prepare()
        batches = list(features.layout().rows_of())

        def plain() -> None:
            for rows in batches:
                self.plain(data, rows)
                self.model.zero_grad(set_to_none=True)

        return {
            PLAIN: plain,
            FEATURES: lambda: torch.cat([features.features(rows) for rows in batches]),  # (n, k)
            EXACT: lambda: torch.cat([exact(rows) for rows in batches]),  # (n, 2) float64
        }


def random_rows(count: int, longest: int, vocabulary: int, shortest: int = 8) -> TokenizedDataset:
    """Rows of random tokens, as long as instructions are (log-normal), all of them learnt."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(5.3, 0.6, count), shortest, longest).astype(int)
    return TokenizedDataset.from_columns(
        [{"input_ids": generator.integers(3, vocabulary, length).tolist()} for length in lengths]
    )


def host_milliseconds(work: Work) -> dict[str, float]:
    """From start to end of a batch whose arithmetic is next to nothing, by name; the median."""
    found: dict[str, list[float]] = {name: [] for name in work.passes["short"]}
    for _ in range(1 + SHORT_REPEATS):
        for name, run in work.passes["short"].items():
            synchronised(work.device)
            start = time.perf_counter()
            run()
            synchronised(work.device)
            found[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def synchronised(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def deviation(features: Tensor, exact: Tensor, dim: int) -> float:
    """The largest distance of |phi|^2 / |u|^2 from 1, in the standard deviations sqrt(2 / k) of a projection.

    Args:
        features: ``(n, k)`` phi.
        exact: ``(n, 1 + d)`` float64: |u|^2, then inner products.
        dim: k.
    """
    ratio = features.double().square().sum(dim=1).cpu() / exact[:, 0].cpu()  # (n,)
    return float((ratio - 1).abs().max() / math.sqrt(2 / dim))


def measured_model(size: str, device: torch.device, rounds: int) -> dict[str, Any]:
    """Times, ratios, memory and agreement; JSON-able."""
    work = Work(size, device)
    weights = sum(value.numel() for value in work.model.parameters())
    ways = work.passes["rows"]
    with undisturbed(work.model):
        contenders = [Contender(name, BASELINE if name == PLAIN else OURS, run) for name, run in ways.items()]
        times = measure(contenders, rounds, device, TensorMemory)
        host = host_milliseconds(work)
        apart = deviation(ways[FEATURES](), ways[EXACT](), work.dim)
    rows = len(work.data)
    found = {
        name: {
            "rows a second": rows / time.median(),
            "times plain": paired_ratio(time.wall, times[PLAIN].wall),
            "host ms a batch": host[name],
            "peak bytes": time.memory,
        }
        for name, time in times.items()
    }
    return {
        "parameters": weights,
        "trained": work.parameters,
        "rows": rows,
        "tokens": int(sum(work.data.lengths)),
        "ways": found,
        "deviation": apart,
        "ok": apart <= MOST_DEVIATIONS,
    }


def reward(prediction: str, reference: str, metadata: dict[str, Any]) -> float:
    """The share of letters in an answer: random answers differ in it, so that there is something to learn."""
    return sum(character.isalpha() for character in prediction) / max(len(prediction), 1)


def measured_nice(device: torch.device, folder: Path) -> dict[str, Any]:
    """Two selections of NICE and the training on them; JSON-able."""

    def rows(count: int, seed: int) -> list[dict[str, str]]:
        samples = tiny_samples(count, seed, distinct=True)
        return [{"instruction": sample.messages[0]["content"], "output": sample.reference or ""} for sample in samples]

    start = time.perf_counter()
    trainer = df.Trainer(
        tiny_lora(tiny_model()),
        tiny_tokenizer(),
        rows(32, 0),
        rows(6, 50),
        df.NiceSelector(reward=reward, mc_samples=4, max_new_tokens=12),
        schedule=df.Schedule(2, 2, 2),
        args=df.TrainingArguments(output_dir=str(folder), learning_rate=1e-3, template="chatml"),
    )
    trainer.train()
    scores = [pq.read_table(path)["score"].to_numpy() for path in sorted((folder / "selections").glob("*.parquet"))]
    used = next(trainer.model.parameters()).device.type
    complete = len(scores) == 2 and all(np.isfinite(score).all() and np.ptp(score) > 0 for score in scores)
    return {
        "device": used,
        "seconds": time.perf_counter() - start,
        "selections": len(scores),
        "ok": used == device.type and complete and (folder / "adapter_model.safetensors").is_file(),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("model", "nice"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=sorted(SIZES), default="1b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the trainer takes a GPU that it can see
    device = torch.device(options.device)
    machine = facts(device)
    print(describe(machine))
    if options.part == "model":
        found = measured_model(options.size, device, options.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = measured_nice(device, Path(folder))
    print(found)
    if options.json:
        write_json(options.json, {"machine": machine, **found})
    sys.exit(0 if found["ok"] else 1)


if __name__ == "__main__":
    main()
