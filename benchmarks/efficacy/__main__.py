"""Measure methods on planted pools: ``python -m benchmarks.efficacy`` from the root of the repository.

A cell that has been measured is read from ``build/efficacy/results``; a run that was stopped goes on with the first
cell that is missing. ``--quick`` takes one seed and the methods of the first table.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch

from .cells import Bench, Result
from .methods import METHODS
from .pools import Sizes
from .protocol import Protocol
from .tables import markdown, report

ROOT = Path(__file__).resolve().parents[2]
FIRST = ("zero-shot", "random", "oracle", "less", "nice", "nice, old defaults")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "efficacy", help="cache (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--test-rows", type=int, default=Sizes().test, help="of a pool (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own number")
    parser.add_argument("--quick", action="store_true", help="one seed, the first methods")
    parser.add_argument("--cached", action="store_true", help="measure nothing: the table of what is there")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--markdown", type=Path, help="where the table goes")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.methods = options.seeds[:1], list(FIRST)
    return options


def measure(options: argparse.Namespace, bench: Bench) -> list[Result]:
    """All cells, seed after seed."""
    results: list[Result] = []
    for seed in options.seeds:
        for name in options.methods:
            found = bench.cell(name, seed, only_cached=options.cached)
            if found is not None:
                results.append(found)
                print(report(found), flush=True)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    bench = Bench(Protocol(Sizes(test=options.test_rows)), options.model, options.folder)
    results = measure(options, bench)
    table = markdown(results)
    print(f"\n{table}")
    if options.json:
        from dataflex.utils.files import write_json

        write_json(options.json, results)
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
