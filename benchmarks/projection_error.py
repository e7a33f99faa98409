"""Error of the cosines of projected vectors, beside what theory allows: 1 / sqrt(k).

    python benchmarks/projection_error.py --quick                 # sjlt alone, a minute
    python benchmarks/projection_error.py --json error.json --markdown error.md

For pairs x, y with cosine rho, features f(x), f(y) of k entries:

- cosine error: cos(f(x), f(y)) - rho. What selection uses. Rms (1 - rho^2) / sqrt(k) for normal entries of P, to first
  order; so 1 / sqrt(k) bounds it, whatever the pairs.
- inner-product error: (<f(x), f(y)> - <x, y>) / (|x| |y|). Rms sqrt((1 + rho^2) / k) for normal entries.

Both theories are printed for the very pairs that are measured. Pairs under one P depend on each other, so every round
draws another P (and other vectors, where they are generated): the standard error is that of the rounds' mean squares.
Cosines of the vectors and of the features are computed in float64.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dataflex.projection.projector import Projector
from dataflex.utils.files import write_json, write_text
from measuring.errors import Summary, pair_errors, summarise
from measuring.lora_gradients import lora_gradients
from measuring.machine import describe, facts
from measuring.vectors import GENERATED, Generate, Vectors

LIMIT = 1.05
TAIL_LIMIT = 1.5
HEAVY = "heavy tails"
KINDS: dict[str, dict[str, Any]] = {
    "sjlt s=1": {"kind": "sjlt", "sparsity": 1},
    "sjlt s=4": {"kind": "sjlt", "sparsity": 4},
    "sjlt s=8": {"kind": "sjlt", "sparsity": 8},
    "rademacher": {"kind": "rademacher"},
    "gaussian": {"kind": "gaussian"},
}
Draw = Callable[[int], Vectors]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=4096, help="features k, 4096")
    parser.add_argument("--rows", type=int, default=64, help="vectors a round, 64: 2016 pairs")
    parser.add_argument("--rounds", type=int, default=32, help="rounds of the sparse kinds, 32")
    parser.add_argument("--dense-rounds", type=int, default=8, help="rounds of the dense kinds, 8: they are slow")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of dataflex")
    parser.add_argument("--quick", action="store_true", help="the sparse kinds, 8 rounds")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.kinds = 8, [kind for kind in options.kinds if kind.startswith("sjlt")]
    return options


def vector_sets(rows: int) -> Iterator[tuple[str, Draw]]:
    """Names of vector sets, and what draws each for a round."""
    for name, (draw, count) in GENERATED.items():
        yield name, partial(_generated, draw, rows, count)
    source, raw, normalised = lora_gradients(rows)
    yield f"LoRA gradients, {source}", lambda _: raw
    yield "the same, Adam-normalised", lambda _: normalised


def _generated(draw: Generate, rows: int, count: int, seed: int) -> Vectors:
    return draw(rows, count, torch.Generator().manual_seed(seed))


def measure(options: argparse.Namespace, name: str, draw: Draw) -> Iterator[Summary]:
    """The errors of every kind on one set of vectors."""
    errors: dict[str, list[Any]] = {kind: [] for kind in options.kinds}
    for seed in range(options.rounds):
        kinds = [k for k in options.kinds if k.startswith("sjlt") or seed < options.dense_rounds]
        if not kinds:
            break
        vectors = draw(seed)
        truth = vectors.gram()
        for kind in kinds:
            projector = Projector(options.dim, seed=seed, **KINDS[kind])
            errors[kind].append(pair_errors(projector.project(vectors.grads, vectors.adam), truth))
    sample = draw(0)
    for kind in options.kinds:
        yield summarise(name, kind, sample, errors[kind], options.dim)


def markdown(machine: dict[str, Any], summaries: Sequence[Summary], dim: int) -> str:
    """One table, errors in units of 1 / sqrt(k), and the judgement of the tails."""
    unit = 1 / math.sqrt(dim)
    lines = [
        describe(machine),
        "",
        f"In units of 1 / sqrt(k) = {unit:.5f}, k = {dim}; +- one standard error.",
        "",
        "| vectors (entries, kurtosis, mean cosine) | kind | rounds | cosine error, rms | theory | <= 1.05 "
        "| inner-product error, rms | theory | p99.9 of the cosine error | largest |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for s in summaries:
        verdict = {True: "yes", False: "**no**", None: "undecided"}[s.within(LIMIT * unit)]
        lines.append(
            f"| {s.vectors} ({s.entries:,}, {s.kurtosis:,.0f}, {s.mean_cosine:.2f}) | {s.kind} | {s.rounds} "
            f"| {s.cosine_rms / unit:.3f} +- {s.cosine_error / unit:.3f} | {s.cosine_theory / unit:.3f} | {verdict} "
            f"| {s.product_rms / unit:.3f} +- {s.product_error / unit:.3f} | {s.product_theory / unit:.3f} "
            f"| {s.tail / unit:.2f} +- {s.tail_error / unit:.2f} | {s.largest / unit:.2f} |"
        )
    return "\n".join([*lines, *_tails(summaries)]) + "\n"


def _tails(summaries: Sequence[Summary]) -> Iterator[str]:
    """The tails of the sparse kinds over those of the dense ones."""
    tails = {s.kind: s.tail for s in summaries if s.vectors == HEAVY}
    for dense in ("rademacher", "gaussian"):
        for kind in (kind for kind in tails if dense in tails and kind.startswith("sjlt")):
            ratio = tails[kind] / tails[dense]
            verdict = f"; at most {TAIL_LIMIT}: {'yes' if ratio <= TAIL_LIMIT else '**no**'}" if "s=8" in kind else ""
            yield f"\n{HEAVY}, p99.9: {kind} / {dense} = {ratio:.2f}{verdict}"


def main() -> None:
    """Measure and write what was asked for."""
    options = parse()
    torch.set_num_threads(options.threads)
    machine = facts(torch.device("cpu"))
    summaries: list[Summary] = []
    for name, draw in vector_sets(options.rows):
        for summary in measure(options, name, draw):
            print(f"{name}, {summary.kind}: rms {summary.cosine_rms:.5f} +- {summary.cosine_error:.5f}", flush=True)
            summaries.append(summary)
    text = markdown(machine, summaries, options.dim)
    print(f"\n{text}")
    if options.json:
        write_json(options.json, {"machine": machine, "dim": options.dim, "results": [asdict(s) for s in summaries]})
    if options.markdown:
        write_text(options.markdown, text)


if __name__ == "__main__":
    main()
