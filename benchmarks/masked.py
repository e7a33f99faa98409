"""Features of full fine-tuning: every coordinate projected, or some of each large matrix (``projection: masked``).

Usage: python benchmarks/masked.py [--model FOLDER] [--rows 4] [--rounds 3] [--values 16384] [--dense] [--json FILE]

All weights of the model are trained. After a few steps of AdamW the features of one batch are computed in turns: with
``sjlt`` from every coordinate (``--dense``: with ``rademacher``, too), with ``masked`` from about ``values`` of each
matrix, and beside them a plain forward and backward pass, and the part of it that features cannot do without: forward,
and backward to the activations, without gradients of weights. The cosines between the rows' features are compared with
those of whole Adam-normalised gradients, whose inner products are summed in float64; seeds of the projection are drawn
anew for that.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dataflex.data import ChatTemplate
from dataflex.data.collate import collate
from dataflex.data.dataset import tokenize
from dataflex.data.sources import load_samples
from dataflex.gradients.samples import SampleFeatures
from dataflex.gradients.slots import parameter_slots
from dataflex.models.losses import mean_losses
from dataflex.models.model import load_model, load_tokenizer, undisturbed
from dataflex.projection.adam import AdamMoments, adam_normalize
from dataflex.projection.projector import Projector
from dataflex.selectors.base import SelectionContext
from dataflex.testing import tiny_context

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "quickstart" / "data" / "train.jsonl"
STEPS, BATCH, RATE, CUTOFF = 3, 4, 1e-5, 128
PLAIN, FLOOR = "plain forward and backward", "forward, backward to activations"


@dataclass(frozen=True)
class Way:
    """What one way costs and gives.

    Attributes:
        name: Kind of projection.
        values: Coordinates of a row that are read, of all p.
        seconds: Processor seconds a row, one entry a round.
        errors: Root mean square of what cosines between rows are off by, one entry a seed; empty for passes alone.
    """

    name: str
    values: int
    seconds: list[float]
    errors: list[float]


class Products:
    """Collects inner products of rows among one another: ``(g, g)`` float64.

    Args:
        rows: g.
        adam: Moments that normalise the gradients.
    """

    def __init__(self, rows: int, adam: AdamMoments) -> None:
        self._sums = torch.zeros((rows, rows), dtype=torch.float64)
        self._adam = adam

    def add(self, block: Tensor, offset: int) -> None:
        """Add a block's products."""
        values = adam_normalize(block.float(), self._adam.slice(offset, offset + block.shape[1])).double()
        self._sums += (values @ values.T).cpu()

    def result(self) -> Tensor:
        """The sums."""
        return self._sums


def warmed_up(options: argparse.Namespace, folder: Path) -> SelectionContext:
    """The model after some steps on rows that the features are not of."""
    tokenizer = load_tokenizer(str(options.model))
    samples = load_samples(str(DATA), max_samples=options.rows + STEPS * BATCH)
    dataset = tokenize(samples, ChatTemplate.load("chatml", tokenizer), CUTOFF, progress=False)
    model = load_model(str(options.model)).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for start in range(options.rows, len(dataset), BATCH):
        rows = [dataset[row] for row in range(start, min(start + BATCH, len(dataset)))]
        mean_losses(model, collate(rows, int(tokenizer.pad_token_id))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    context = tiny_context(folder, model=model, optimizer=optimizer, train_dataset=dataset.select(range(options.rows)))
    return replace(context, tokenizer=tokenizer)


def features_of(context: SelectionContext, projector: Projector) -> SampleFeatures:
    """Adam features of the rows, all in one batch."""
    features = SampleFeatures(
        context,
        context.train_dataset,
        projector,
        gradient_type="adam",
        adam_variant="adamw",
        batch_tokens=CUTOFF * len(context.train_dataset),
    )
    features.prepare()
    return features


def measure(options: argparse.Namespace) -> list[Way]:
    """Every way in turns, then the errors."""
    with TemporaryDirectory() as folder:
        context = warmed_up(options, Path(folder))
        rows = range(options.rows)
        every: dict[str, dict[str, int]] = {"sjlt": {}} | ({"rademacher": {}} if options.dense else {})
        kinds = every | {f"masked, {values}": {"matrix_values": values} for values in options.values}
        projectors = {name: Projector(options.dim, name.split(",")[0], 0, **own) for name, own in kinds.items()}
        features = {name: features_of(context, projector) for name, projector in projectors.items()}
        ways: dict[str, Callable[[], Any]] = {PLAIN: lambda: plain(context), FLOOR: lambda: to_activations(context)}
        ways |= {name: lambda own=own: own.features(rows) for name, own in features.items()}
        with undisturbed(context.model):
            times = timed(ways, options.rounds)
            moments = features["sjlt"].adam
            assert moments is not None
            exact = cosines(features["sjlt"].collect(rows, lambda count: Products(count, moments)))
        found = [Way(name, 0, [each / options.rows for each in times[name]], []) for name in (PLAIN, FLOOR)]
        for name, own in kinds.items():
            drawn = [Projector(options.dim, name.split(",")[0], 1000 + seed, **own) for seed in range(options.seeds)]
            errors = [error(context, projector, exact) for projector in drawn]
            slots = parameter_slots(context.model, projectors[name].kind.picks).values()
            seconds = [each / options.rows for each in times[name]]
            found.append(Way(name, sum(slot.size for slot in slots), seconds, errors))
        return found


def plain(context: SelectionContext) -> None:
    """A forward and a backward pass of all rows, as a training step has them."""
    with torch.enable_grad():
        padding = int(context.tokenizer.pad_token_id)
        mean_losses(context.model, collate(list(context.train_dataset), padding)).mean().backward()
    context.model.zero_grad(set_to_none=True)


def to_activations(context: SelectionContext) -> None:
    """What every way needs: forward, and backward to each matrix's input, without gradients of weights."""
    trained = [parameter for parameter in context.model.parameters() if parameter.requires_grad]
    hook = context.model.get_input_embeddings().register_forward_hook(lambda *arguments: arguments[-1].requires_grad_())
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        plain(context)
    finally:
        hook.remove()
        for parameter in trained:
            parameter.requires_grad_()


def timed(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each way in each round, after one that does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, way in ways.items():
            start = time.process_time()
            way()
            found[name].append(time.process_time() - start)
            print(f"{name}: {found[name][-1]:.2f} s", flush=True)
    return {name: times[1:] for name, times in found.items()}


def error(context: SelectionContext, projector: Projector, exact: Tensor) -> float:
    """Root mean square of the differences of the cosines between rows."""
    features = features_of(context, projector)
    with undisturbed(context.model):
        rows = features.features(range(len(context.train_dataset))).double()
    above = torch.triu(torch.ones_like(exact), diagonal=1).bool()
    return float((cosines(rows @ rows.T) - exact)[above].square().mean().sqrt())


def cosines(products: Tensor) -> Tensor:
    """Cosines ``(g, g)`` from inner products."""
    norms = products.diagonal().sqrt()
    return products / norms[:, None] / norms


def lines(ways: Sequence[Way]) -> list[str]:
    """The table as Markdown."""
    dense = statistics.median(next(way for way in ways if way.name == "sjlt").seconds)
    found = [
        "| way | coordinates read | processor seconds a row | as fast as sjlt | cosines off by |",
        "|---|---|---|---|---|",
    ]
    for way in ways:
        seconds = statistics.median(way.seconds)
        off = f"{math.sqrt(statistics.fmean(each**2 for each in way.errors)):.4f}" if way.errors else "-"
        read = f"{way.values:,}" if way.values else "-"
        found.append(f"| {way.name} | {read} | {seconds:.2f} | {dense / seconds:.1f}x | {off} |")
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="projections whose errors are measured")
    parser.add_argument("--values", type=int, nargs="+", default=[1 << 14], help="values of a matrix that are read")
    parser.add_argument("--dense", action="store_true", help="measure rademacher, too: ten times as long")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parse(arguments)
    ways = measure(options)
    print("\n".join(lines(ways)))
    if options.json:
        options.json.write_text(json.dumps([asdict(way) for way in ways], indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
