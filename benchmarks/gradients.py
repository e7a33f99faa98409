"""Time and memory of per-sample gradient features, beside the plain training step and other ways to get them.

Usage: python benchmarks/gradients.py [--model FOLDER] [--rows 48] [--turns 1] [--rounds 3] [--json FILE]

In one run, in turns, on the same batches of real text (the quickstart's rows; --turns joins several to one longer
conversation), with LoRA on all linear layers and the moments of two AdamW steps:

- plain step: forward and backward pass of the mean loss, gradients of the LoRA weights by autograd
- features: this package, Adam normalisation and sjlt projection to k dimensions included
- exact: this package, Adam normalisation and exact inner products with --directions vectors of p numbers in place of
  the projection: nothing is kept but these sums
- vmap: per-sample gradients by torch.func, then Adam and the same projection
- one by one + TRAK: a backward pass a sample, Adam, and TRAK's BasicProjector, as LESS-style code does it. That
  projector draws its matrix in every call and shares it among the samples of the call, 16 in LESS's code; a few of its
  k columns are timed with --trak-rows samples, and the rest is extrapolated, which the table says.

Then, what batches cost beside arithmetic (measuring/batches.py): padding, and the host's time.

Ratios are medians over rounds of pairs of the same round. Processor time is that of the process over the number of
threads, and more telling than wall time where the machine is shared. Memory is the most that tensors held at once above
the pass's start (measuring/memory.py says why not the resident set); --memory measures it alone, in one pass a variant.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import time
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataflex.data import ChatTemplate, load_samples, tokenize
from dataflex.data.collate import Batch, collate
from dataflex.data.encoding import IGNORE_INDEX
from dataflex.gradients.exact import exact_pass
from dataflex.gradients.layout import by_length
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.losses import mean_losses
from dataflex.models.model import add_lora, load_model, load_tokenizer, trainable_parameters
from dataflex.projection.adam import adam_normalize
from dataflex.projection.projector import Projector
from dataflex.selectors.base import SelectionContext
from dataflex.types import Sample
from measuring import batches
from measuring.memory import TensorMemory
from measuring.timing import BASELINE, OURS, PEER, Contender, Times, measure, paired_ratio

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
PLAIN, FEATURES, EXACT, VMAP, TRAK = "plain step", "features", "exact", "vmap", "one by one + TRAK"
MOST_TIME, MOST_MEMORY = 1.10, 300 * 2**20
"""Goals: exact sums take so many times as long as the plain step, and so many bytes beside the directions, at most."""


class Setting:
    """Model, optimizer, data and batches that all variants share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        tokenizer = load_tokenizer(str(options.model))
        self.model = add_lora(load_model(str(options.model)), rank=options.rank, alpha=2 * options.rank)
        self.model.eval()
        template = ChatTemplate.load("chatml", tokenizer)
        samples = joined(load_samples(str(options.data)), options.turns)[: options.rows]
        self.dataset = tokenize(samples, template, options.cutoff, progress=False)
        self.pad = int(tokenizer.pad_token_id)
        optimizer = torch.optim.AdamW((p for _, p in trainable_parameters(self.model)), lr=1e-4)
        for step in range(2):
            rows = [(8 * step + number) % len(self.dataset) for number in range(8)]
            mean_losses(self.model, self.batch(rows)).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        self.adam = adam_moments(self.model, optimizer)
        self.projector = Projector(options.dim)
        context = SelectionContext(
            model=self.model,
            tokenizer=tokenizer,
            template=template,
            train_dataset=self.dataset,
            eval_dataset=None,
            num_samples=1,
            step=2,
            round=1,
            num_rounds=1,
            total_samples=1,
            seed=0,
            output_dir=Path(),
            optimizer=optimizer,
            autocast=nullcontext,
        )
        self.features = SampleFeatures(
            context,
            self.dataset,
            self.projector,
            gradient_type="adam",
            adam_variant="adamw",
            batch_tokens=options.batch_tokens,
        )
        self.directions = torch.randn(options.directions, len(self.adam), generator=torch.Generator().manual_seed(0))
        self.exact = exact_pass(context, self.features, self.directions)
        started = time.process_time()
        self.features.prepare()
        self.comparison = (time.process_time() - started) / torch.get_num_threads()
        self.batches = list(self.features.layout().rows_of())

    def batch(self, rows: list[int]) -> Batch:
        """Some rows, padded."""
        return collate([self.dataset[row] for row in rows], self.pad)


def joined(samples: list[Sample], turns: int) -> list[Sample]:
    """Conversations of ``turns`` samples each."""
    groups = [samples[start : start + turns] for start in range(0, len(samples) - turns + 1, turns)]
    return [replace(group[0], messages=tuple(m for sample in group for m in sample.messages)) for group in groups]


def plain_step(setting: Setting) -> None:
    """One forward and backward pass of every batch."""
    for rows in setting.batches:
        mean_losses(setting.model, setting.batch(rows)).mean().backward()
        setting.model.zero_grad(set_to_none=True)


def batched_features(setting: Setting) -> Tensor:
    """This package: ``(n, k)`` in the order of the batches."""
    return torch.cat([setting.features.features(rows) for rows in setting.batches])


def exact_sums(setting: Setting) -> Tensor:
    """This package: ``(n, 1 + d)`` float64 squares and inner products in the order of the batches."""
    return torch.cat([setting.exact(rows) for rows in setting.batches])


def vmap_features(setting: Setting, rows_at_once: int) -> Tensor:
    """torch.func: vmap of the gradient of a single row's loss, then Adam and projection of the whole rows.

    Rows are padded on the right, so that causal attention needs no mask, which vmap would not allow.
    """
    parameters = dict(trainable_parameters(setting.model))
    features = []
    for rows in setting.batches:
        for start in range(0, len(rows), rows_at_once):
            batch = setting.batch(rows[start : start + rows_at_once])
            labels = batch.labels[:, 1:]
            first = int((labels != IGNORE_INDEX).any(dim=0).nonzero()[0])
            keep = labels.shape[1] - first + 1

            def loss(values: dict[str, Tensor], ids: Tensor, wanted: Tensor, keep: int = keep) -> Tensor:
                arguments = {"input_ids": ids[None], "use_cache": False, "logits_to_keep": keep}
                logits = torch.func.functional_call(setting.model, values, kwargs=arguments).logits
                return nn.functional.cross_entropy(logits[0, :-1], wanted)

            gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
            found = gradients(parameters, batch.input_ids, labels[:, first:])
            whole = torch.cat([found[name].flatten(1) for name in parameters], dim=1)  # (b, p)
            features.append(setting.projector.project(whole, setting.adam))
    return torch.cat(features)


class TrakLoop:
    """A backward pass a sample, then Adam and a part of TRAK's projection for all of them at once."""

    def __init__(self, setting: Setting) -> None:
        from trak.projectors import BasicProjector, ProjectionType

        options = setting.options
        self.setting = setting
        self.rows = list(range(min(options.trak_rows, len(setting.dataset))))
        self.projector = BasicProjector(
            len(setting.adam), options.trak_columns, 0, ProjectionType.rademacher, torch.device("cpu"), block_size=25
        )

    def gradients(self) -> Tensor:
        """``(b, p)`` normalised gradients of the samples."""
        model, batch = self.setting.model, self.setting.batch
        return torch.cat([adam_normalize(self.gradient(model, batch([row])), self.setting.adam) for row in self.rows])

    def gradient(self, model: nn.Module, batch: Batch) -> Tensor:
        """``(1, p)`` of a batch of one."""
        return sample_gradient(model, batch, nullcontext)[None]

    def times(self) -> Times:
        """One round, extrapolated to all rows and columns."""
        whole = self.gradients()
        rows = len(self.rows) / len(self.setting.dataset)
        columns = self.setting.options.trak_columns / self.setting.options.dim
        gradients, projection = measure(
            [
                Contender("gradients", PEER, self.gradients, share=rows),
                Contender("projection", PEER, lambda: self.projector.project(whole, model_id=0), share=rows * columns),
            ],
            1,
            CPU,
            TensorMemory,
        ).values()
        return Times(
            wall=[sum(pair) for pair in zip(gradients.wall, projection.wall, strict=True)],
            processor=[sum(pair) for pair in zip(gradients.processor or [], projection.processor or [], strict=True)],
            memory=max(gradients.memory or 0, projection.memory or 0),
        )


def compare(setting: Setting) -> tuple[dict[str, Times], dict[str, str]]:
    """Times of the variants that work here, and why the others do not."""
    options, absent = setting.options, {}
    contenders = [
        Contender(PLAIN, BASELINE, lambda: plain_step(setting)),
        Contender(FEATURES, OURS, lambda: batched_features(setting)),
        Contender(EXACT, OURS, lambda: exact_sums(setting)),
    ]
    if options.vmap_rows:
        try:
            vmap_features_of_first(setting)
            contenders.append(Contender(VMAP, PEER, lambda: vmap_features(setting, options.vmap_rows)))
        except RuntimeError as error:
            absent[VMAP] = str(error).split("\n")[0]
    times = measure(contenders, 0 if options.memory else options.rounds, CPU, TensorMemory)
    if options.trak_rows and not options.memory:
        try:
            times[TRAK] = TrakLoop(setting).times()
        except ImportError:
            absent[TRAK] = "not installed (pip install traker)"
    return times, absent


def vmap_features_of_first(setting: Setting) -> None:
    """Whether torch.func takes this model, and gives the same features."""
    batches, setting.batches = setting.batches, [setting.batches[0][:2]]
    try:
        found, expected = vmap_features(setting, 2), batched_features(setting)
    finally:
        setting.batches = batches
    difference = float((found - expected).norm() / expected.norm())
    if difference > 1e-3:
        raise RuntimeError(f"its features differ by {difference:.2g}")


def scaling(setting: Setting) -> list[tuple[int, float]]:
    """Number of rows and features per second, for a quarter, half and all of the rows."""
    found = []
    whole = setting.batches
    for share in (4, 2, 1):
        n = max(1, len(setting.dataset) // share)
        lengths = np.array(setting.dataset.lengths[:n], np.int64)
        setting.batches = list(by_length(lengths, setting.features.batch_tokens).rows_of())
        times = measure([Contender(FEATURES, OURS, lambda: batched_features(setting))], 1, CPU)[FEATURES]
        found.append((n, n / times.median()))
    setting.batches = whole
    return found


def table(times: dict[str, Times], absent: dict[str, str], rows: int) -> str:
    """Markdown, a row a variant."""
    header = ["", "processor ms a row", "rows/s", "processor, times plain", "wall, times plain", "peak MiB above plain"]
    lines = [header, ["---"] * len(header)]
    lines += [line(name, found, times[PLAIN], rows) for name, found in times.items()]
    lines += [[name, reason, "", "", "", ""] for name, reason in absent.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def memory_table(times: dict[str, Times]) -> str:
    """Markdown, a row a variant."""
    lines = [["", "peak of tensors, MiB", "above the plain step, MiB"], ["---"] * 3]
    for name, found in times.items():
        lines.append([name, f"{(found.memory or 0) / 2**20:,.0f}", above(found, times[PLAIN])])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def above(found: Times, plain: Times) -> str:
    """Memory beyond the plain step's in MiB."""
    return f"{((found.memory or 0) - (plain.memory or 0)) / 2**20:+.0f}"


def line(name: str, found: Times, plain: Times, rows: int) -> list[str]:
    """The cells of a variant."""
    processor, base = found.processor_median() or 0.0, plain.processor_median() or 1.0
    ratios = [processor / base, found.median() / plain.median()]
    if len(found.wall) == len(plain.wall):  # of the same rounds
        paired = [paired_ratio(found.processor, plain.processor), paired_ratio(found.wall, plain.wall)]
        ratios = [pair or ratio for pair, ratio in zip(paired, ratios, strict=True)]
    return [
        name + (" (extrapolated)" if name == TRAK else ""),
        f"{1000 * processor / rows:.1f}",
        f"{rows / found.median():.2f}",
        *(f"{ratio:.3f}" for ratio in ratios),
        above(found, plain),
    ]


def goals(times: dict[str, Times], directions: Tensor) -> str:
    """Markdown: what exact sums may cost, and what they do."""
    plain, found = times[PLAIN], times[EXACT]
    memory = (found.memory or 0) - (plain.memory or 0)  # the directions are there before, and come on top
    lines = [["goal", "measured", "met"], ["---"] * 3]
    if found.wall:
        ratio = paired_ratio(found.wall, plain.wall) or 0.0
        by_processor = paired_ratio(found.processor, plain.processor) or 0.0
        met = "yes" if ratio <= MOST_TIME else "no"
        lines.append(
            [f"exact / plain step <= {MOST_TIME:.2f}, wall", f"{ratio:.3f} ({by_processor:.3f} by processor time)", met]
        )
    lines.append(
        [
            f"exact: memory above the plain step < {MOST_MEMORY / 2**20:.0f} MiB + directions "
            f"({directions.nbytes / 2**20:.0f} MiB)",
            f"{memory / 2**20:+.0f} MiB + directions",
            "yes" if memory < MOST_MEMORY else "no",
        ]
    )
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def comparison_line(setting: Setting, features: Times) -> str:
    """What it costs to compare the rules with plain gradients, in rows."""
    per_row = (features.processor_median() or features.median()) / len(setting.dataset)
    return (
        f"\nBefore them, once a run: the rules are compared with plain gradients, {setting.comparison:.2f} s of "
        f"processor time, that of {setting.comparison / per_row:.1f} rows."
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "quickstart" / "data" / "train.jsonl")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--turns", type=int, default=1, help="samples in one conversation")
    parser.add_argument("--cutoff", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--directions", type=int, default=1, help="vectors that exact sums are taken with")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vmap-rows", type=int, default=8, help="rows at once of torch.func; 0: leave it out")
    parser.add_argument("--trak-rows", type=int, default=16, help="samples of one TRAK call; 0: leave it out")
    parser.add_argument("--trak-columns", type=int, default=50, help="columns of TRAK's projection that are timed")
    parser.add_argument("--memory", action="store_true", help="measure memory alone, one pass a variant")
    parser.add_argument("--scaling", action="store_true", help="time a quarter, half and all rows")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options = parse()
    logging.basicConfig(level=logging.WARNING)
    warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # vmap's attention, row by row
    setting = Setting(options)
    rows, tokens = len(setting.dataset), setting.dataset.report.tokens
    print(
        f"{rows} rows, {tokens / rows:.0f} tokens a row, {len(setting.batches)} batches; p = {len(setting.adam):,}, "
        f"k = {options.dim}; {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}\n"
    )
    times, absent = compare(setting)
    print(memory_table(times) if options.memory else table(times, absent, rows))
    print("\n" + goals(times, setting.directions))
    if not options.memory:
        print(comparison_line(setting, times[FEATURES]) + "\n\n" + batches.table(options.batch_tokens))
    scales = scaling(setting) if options.scaling else []
    for n, rate in scales:
        print(f"n = {n}: {rate:.2f} features a second")
    if options.json:
        facts: dict[str, Any] = {name: vars(found) for name, found in times.items()}
        settings = {key: getattr(value, "name", value) for key, value in vars(options).items() if key != "json"}
        report = {
            "settings": settings,
            "rows": rows,
            "tokens": tokens,
            "times": facts,
            "absent": absent,
            "comparison": setting.comparison,
        }
        options.json.write_text(json.dumps({**report, "scaling": scales}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
