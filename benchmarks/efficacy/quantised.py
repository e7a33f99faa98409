"""What does QLoRA choose beside full precision? ``python -m benchmarks.efficacy.quantised`` from the root.

On the planted pool of a seed the base model is loaded twice, in float32 and with 4-bit weights (double-quantised nf4).
Each takes the same steps on the same random rows with an adapter of its own, then ``less`` chooses. What counts is how
many rows both choose, how scores correlate, and what a selection costs. On the quantised model the gradients of some
rows, as the batched rules give them, are compared with a backward pass for each row alone, and so are their features.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

import dataflex as df
from dataflex.data.cache import CacheSettings
from dataflex.data.collate import collate
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.model import add_lora, load_model, load_tokenizer, trainable_parameters, undisturbed
from dataflex.models.quantization import Quantization
from dataflex.training.inputs import as_dataset
from dataflex.types import Autocast
from dataflex.utils.distributed import Ranks
from dataflex.utils.files import write_json

from .cells import revision
from .pools import RIGHT, Pool, Row, Sizes, build
from .protocol import CUTOFF, TEMPLATE, Protocol
from .spent import spent

ROOT = Path(__file__).resolve().parents[2]
WAYS: dict[str, Quantization | None] = {"fp32": None, "nf4": Quantization(4, "nf4", double=True)}
PROTOCOL = Protocol()
COMPARED = 6
"""Rows whose gradients are computed once more, each alone."""
Result = dict[str, Any]


@dataclass(frozen=True)
class State:
    """A warmed-up model, as gradients depend on it (:class:`dataflex.gradients.context.GradientContext`)."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    autocast: Autocast = nullcontext
    ranks: Ranks = field(default_factory=Ranks)


def measure(seed: int, model: Path, sizes: Sizes, count: int) -> Result:
    """Choose ``count`` rows of a seed's pool with each kind of weights, and compare."""
    pool = build(seed, sizes)
    found = {}
    for name, way in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = chosen(pool, seed, model, way, count, Path(folder))
    full, four = (found[name] for name in WAYS)
    right = {*pool.places(RIGHT)}
    both = {*full["indices"]} & {*four["indices"]}
    scores = torch.tensor([found[name].pop("scores") for name in WAYS], dtype=torch.float64)
    return {
        "seed": seed,
        "revision": revision(),
        "rows": len(pool.rows),
        "chosen": count,
        "overlap": len(both) / count,
        "correlation": float(torch.corrcoef(scores)[0, 1]),
        "right": {name: len(right & {*found[name]["indices"]}) for name in WAYS},
        "gradients": four["gradients"],
        "features": four["features"],
        "seconds": {name: found[name]["choice_seconds"] for name in WAYS},
        "processor": {name: found[name]["choice_processor"] for name in WAYS},
        "weights": {name: found[name]["weights"] for name in WAYS},
        "indices": {name: found[name]["indices"] for name in WAYS},
    }


def chosen(pool: Pool, seed: int, model: Path, way: Quantization | None, count: int, folder: Path) -> Result:
    """Warm up and choose with one kind of weights; quantised ones are compared with single backward passes."""
    torch.manual_seed(seed)
    tokenizer, base = load_tokenizer(str(model)), load_model(str(model), quantization=way)
    size = base.get_memory_footprint()
    adapted = add_lora(base, rank=PROTOCOL.rank, alpha=2 * PROTOCOL.rank)
    trainer = df.Trainer(
        adapted,
        tokenizer,
        pool.rows,
        pool.prompts,
        df.RandomSelector(),
        schedule=df.Schedule(PROTOCOL.warmup_step),
        args=df.TrainingArguments(
            output_dir=folder,
            seed=seed,
            template=TEMPLATE,
            cutoff_len=CUTOFF,
            learning_rate=PROTOCOL.learning_rate,
            per_device_train_batch_size=PROTOCOL.batch,
            plot_loss=False,
        ),
    )
    trainer.train()
    checkpoint = folder / f"checkpoint-{PROTOCOL.warmup_step}"
    with spent("choice") as costs:
        selection = df.select(
            adapted,
            tokenizer,
            pool.rows,
            pool.prompts,
            selector="less",
            num_samples=count,
            checkpoint=checkpoint,
            template=TEMPLATE,
            cutoff_len=CUTOFF,
            seed=seed,
        )
    assert selection.scores is not None
    taken = {"indices": selection.indices.tolist(), "scores": selection.scores.tolist(), "weights": size, **costs}
    if way is None:
        return taken
    return taken | differences(State(trainer.model, tokenizer, trainer.optimizer), pool.rows)


def differences(state: State, rows: Sequence[Row]) -> Result:
    """Largest relative differences of batched gradients and features from those of single backward passes."""
    template = df.ChatTemplate.load(TEMPLATE, state.tokenizer)
    dataset = as_dataset(list(rows[:COMPARED]), template, CUTOFF, CacheSettings(), keep_unlabelled=False)
    padding = int(state.tokenizer.pad_token_id)
    with undisturbed(state.model):
        single = torch.stack([sample_gradient(state.model, collate([row], padding), nullcontext) for row in dataset])
    moments, size = adam_moments(state.model, state.optimizer), single.shape[1]
    assert size == sum(parameter.numel() for _, parameter in trainable_parameters(state.model))
    projector, whole = df.Projector(4096), df.Projector(size, "identity")
    return {
        "gradients": _difference(_batched(state, dataset, whole, None), single),
        "features": _difference(_batched(state, dataset, projector, "adamw"), projector.project(single, moments)),
    }


def _batched(state: State, dataset: Any, projector: df.Projector, variant: Any) -> Tensor:
    """Features ``(n, k)`` of all rows in one batch; without a variant of raw gradients."""
    features = SampleFeatures(
        state,
        dataset,
        projector,
        gradient_type="sgd" if variant is None else "adam",
        adam_variant=variant or "adamw",
        batch_tokens=len(dataset) * CUTOFF,
    )
    features.prepare()
    with undisturbed(state.model):
        return features.features(range(len(dataset)))


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest norm of a row's difference over the row's norm."""
    gaps = (found.double() - expected.double()).norm(dim=1) / expected.double().norm(dim=1)
    return float(gaps.max())


def markdown(results: Sequence[Result]) -> str:
    """The table, a seed a line."""
    lines = [
        "| seed | rows chosen by both | correlation of scores | right rows chosen, fp32 and nf4 | gradients differ by "
        "| features differ by | seconds of a selection, fp32 and nf4 |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in results:
        right, seconds = (" and ".join(f"{value:.0f}" for value in each[key].values()) for key in ("right", "seconds"))
        lines.append(
            f"| {each['seed']} | {each['overlap']:.2f} of {each['chosen']} | {each['correlation']:.3f} | {right} | "
            f"{each['gradients']:.1e} | {each['features']:.1e} | {seconds} |"
        )
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--chosen", type=int, default=28, help="rows of a selection, of 280")
    parser.add_argument("--json", type=Path, help="where the results go, after each seed")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    options = parse(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    results = []
    for seed in options.seeds:
        begun = time.perf_counter()
        results.append(measure(seed, options.model, Sizes(), options.chosen))
        print(f"seed {seed}: {time.perf_counter() - begun:.0f} s", flush=True)
        if options.json:
            write_json(options.json, results)
    print(f"\n{markdown(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
