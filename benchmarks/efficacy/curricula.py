"""Compare mixers and weighters with plain training: ``python -m benchmarks.efficacy.curricula`` from the root.

One pool a seed, in three domains: the planted target's right rows, rows of eight other families, and questions that are
answered with gibberish. Every method trains a new adapter for as many steps on as many rows, drawn from these domains;
what counts is the loss on clean rows that no training sees, of the target and of the families. Nothing is planted for
the methods: a mixer or a weighter that follows high losses meets rows whose loss is high since they are wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import dataflex as df
from dataflex.data.cache import CacheSettings
from dataflex.models.model import add_lora, load_model, load_tokenizer
from dataflex.training.evaluation import Evaluator
from dataflex.training.inputs import as_dataset
from dataflex.utils.distributed import Ranks
from dataflex.utils.files import write_json

from .cells import revision
from .pools import NOISE, RIGHT, Row, Sizes, build
from .protocol import CUTOFF, TEMPLATE

ROOT = Path(__file__).resolve().parents[2]
TARGET, FAMILIES = "target", "families"
TESTED = 24
"""Rows of each clean domain that only the test sees."""
BATCH, SCHEDULE = 8, df.Schedule(warmup_step=4, update_step=3, update_times=4)
"""Rows of a step; a first phase of 4 steps, then 4 mixtures of 3. Weights are given from the fifth step on."""
UNIFORM: dict[str, Any] = {"mixture_sample_rule": "uniform"}
Result = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        build: Makes the component that :class:`dataflex.Trainer` takes, by its argument.
        settings: Arguments of the run beside those that all have.
    """

    build: Callable[[], dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "static, by size": Method(lambda: {"mixer": df.StaticMixer()}),
    "static, uniform": Method(lambda: {"mixer": df.StaticMixer()}, UNIFORM),
    "random mixtures": Method(lambda: {"mixer": df.RandomMixer()}),
    "odm": Method(lambda: {"mixer": df.OdmMixer(alpha=0.5)}),
    "doremi": Method(lambda: {"mixer": df.DoReMiMixer(reweight_eta=1.0, eval_samples=8)}),
    "random rows": Method(dict),
    "loss, linupper": Method(lambda: {"weighter": df.LossWeighter(strategy="linupper")}),
    "loss, quadratic": Method(lambda: {"weighter": df.LossWeighter(strategy="quadratic")}),
    "loss, extremes": Method(lambda: {"weighter": df.LossWeighter(strategy="extremes")}),
    "adapt": Method(lambda: {"weighter": df.AdaptWeighter()}),
}
"""The first is what mixers are compared with, ``random rows`` what weighters are."""


@dataclass(frozen=True)
class Domains:
    """The rows of a seed: to train on, each with its domain, and to test on, by domain."""

    training: list[Row]
    tested: dict[str, list[Row]]
    anchors: list[Row]


def domains(seed: int) -> Domains:
    """Three domains out of a planted pool; its wrong rows are left out."""
    pool = build(seed, Sizes(test=TESTED))
    clean = [row for row in pool.rows if row["task"] not in (RIGHT, NOISE, "wrong")]
    parts = {
        TARGET: [row for row in pool.rows if row["task"] == RIGHT],
        FAMILIES: clean[TESTED:],
        NOISE: [row for row in pool.rows if row["task"] == NOISE],
    }
    training = [{**row, "domain": name} for name, rows in parts.items() for row in rows]
    return Domains(training, {TARGET: pool.test, FAMILIES: clean[:TESTED]}, pool.prompts)


def measure(name: str, seed: int, model: Path) -> Result:
    """Train by a method and measure its losses on the clean rows."""
    method, rows = METHODS[name], domains(seed)
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(str(model))
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trainer = df.Trainer(
            add_lora(load_model(str(model)), rank=8, alpha=16),
            tokenizer,
            rows.training,
            rows.anchors,
            **method.build(),
            schedule=SCHEDULE if method.build() else df.Schedule(SCHEDULE.total_steps()),
            args=df.TrainingArguments(
                output_dir=folder,
                seed=seed,
                template=TEMPLATE,
                cutoff_len=CUTOFF,
                learning_rate=1e-3,
                per_device_train_batch_size=BATCH,
                domain_column="domain" if "mixer" in method.build() else None,
                plot_loss=False,
                **method.settings,
            ),
        )
        trainer.train()
        log = trainer.log.history
    seconds = time.perf_counter() - begun
    losses = {part: _loss(trainer.model, tokenizer, tested) for part, tested in rows.tested.items()}
    shares = [{key: value for key, value in entry.items() if key.startswith("mixture/")} for entry in log]
    return {
        "method": name,
        "seed": seed,
        "revision": revision(),
        "losses": losses,
        "mean": fmean(losses.values()),
        "mixtures": [entry for entry in shares if entry],
        "train_seconds": seconds,
    }


def _loss(model: Any, tokenizer: Any, rows: Sequence[Row]) -> float:
    """Mean token cross-entropy of the answers, in nats."""
    template = df.ChatTemplate.load(TEMPLATE, tokenizer)
    dataset = as_dataset(list(rows), template, CUTOFF, CacheSettings(), keep_unlabelled=True)
    found = Evaluator(model, tokenizer, template, dataset, len(rows), nullcontext, Ranks(), None).evaluate()
    return found["eval_loss"]


def markdown(results: Sequence[Result]) -> str:
    """The table: losses as means over seeds, and the difference to the baseline of each seed."""
    lines = [
        "| method | target | families | mean of both | against its baseline, by seed | seconds |",
        "|---|---|---|---|---|---|",
    ]
    means = {(each["method"], each["seed"]): each["mean"] for each in results}
    baseline = next(iter(METHODS))
    for name, method in METHODS.items():
        own = [each for each in results if each["method"] == name]
        if not own:
            continue
        baseline = "random rows" if "mixer" not in method.build() else baseline
        gaps = [each["mean"] - means[baseline, each["seed"]] for each in own if (baseline, each["seed"]) in means]
        against = "-" if name == baseline else ", ".join(f"{gap:+.3f}" for gap in gaps)
        parts = [fmean(each["losses"][part] for each in own) for part in (TARGET, FAMILIES)]
        cells = [*(f"{value:.3f}" for value in (*parts, fmean(parts))), against]
        lines.append(f"| {name} | {' | '.join(cells)} | {fmean(each['train_seconds'] for each in own):.0f} |")
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--json", type=Path, help="where the results go, after each")
    parser.add_argument("--markdown", type=Path, help="where the table goes")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    options = parse(arguments)
    logging.basicConfig(level=logging.ERROR, format="%(message)s")
    results: list[Result] = []
    for seed in options.seeds:
        for name in options.methods:
            found = measure(name, seed, options.model)
            results.append(found)
            losses = ", ".join(f"{part} {value:.3f}" for part, value in found["losses"].items())
            print(f"seed {seed}: {name}: {losses} ({found['train_seconds']:.0f} s)", flush=True)
            if options.json:
                write_json(options.json, results)
    table = markdown(results)
    print(f"\n{table}")
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
