"""Measure methods on planted pools: ``python -m benchmarks.efficacy`` from the root of the repository.

    python -m benchmarks.efficacy --set quick                     # one pool, a few methods, minutes
    python -m benchmarks.efficacy --set main --encoder FOLDER     # the table; near and tsds embed with the encoder
    python -m benchmarks.efficacy --set main --cached --publish   # docs/efficacy.md again from what has been measured

A cell that has been measured is read from ``build/efficacy``, or from the results that the repository keeps; a run that
was stopped goes on with the first cell that is missing.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .cells import Bench, Cell
from .methods import METHODS
from .page import write_tables
from .pools import Sizes
from .protocol import Protocol
from .public import FETCH, PublicRows, find
from .sets import SETS, CellSet, Cost, cells, predict
from .store import Result, Store
from .tables import markdown, report
from .tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "benchmarks" / "results" / "efficacy_cells.json"
PAGE = ROOT / "docs" / "efficacy.md"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="cells of this name; what follows narrows it")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--tasks", nargs="+", choices=TASKS)
    parser.add_argument("--budgets", type=float, nargs="+", help="shares of the pool")
    parser.add_argument("--test-rows", type=int, help="of a pool")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--encoder", type=Path, help="folder of a sentence-transformers model, for near and tsds")
    parser.add_argument(
        "--public", type=Path, default=ROOT / "build" / "efficacy" / "public", help=f"folder of: {FETCH}"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "efficacy", help="cache (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own number")
    parser.add_argument("--cached", action="store_true", help="measure nothing: what is there")
    parser.add_argument("--anew", action="store_true", help="read no published result: measure in the folder alone")
    parser.add_argument("--publish", action="store_true", help="write benchmarks/results and the tables of the page")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--markdown", type=Path, help="where the table goes")
    options = parser.parse_args(arguments)
    if options.publish and (options.set is None or options.anew):
        parser.error("--publish writes the tables of a --set, with what has been published before")
    return options


def wanted(options: argparse.Namespace) -> CellSet:
    """The cells that are asked for."""
    if options.set is None:
        sizes = Sizes() if options.test_rows is None else Sizes(test=options.test_rows)
        budgets = options.budgets or [None]
        asked = cells(options.methods or METHODS, options.seeds or range(1, 6), options.tasks or ["kinds"], budgets)
        most = max(budgets) if options.budgets else None
        return CellSet(tuple(asked), sizes, Protocol().learning_rate, most)
    found = SETS[options.set]
    kept = tuple(cell for cell in found.cells if _narrowed(cell, options))
    sizes = found.sizes if options.test_rows is None else replace(found.sizes, test=options.test_rows)
    return replace(found, cells=kept, sizes=sizes)


def _narrowed(cell: Cell, options: argparse.Namespace) -> bool:
    pairs = (
        (cell.method, options.methods),
        (cell.seed, options.seeds),
        (cell.task, options.tasks),
        (cell.budget, options.budgets),
    )
    return all(allowed is None or value in allowed for value, allowed in pairs)


def measure(asked: Sequence[Cell], bench: Bench, *, only_cached: bool) -> dict[Cell, Result]:
    """All cells that are there or can be measured, in their order."""
    found = {cell: result for cell in asked if (result := bench.find(cell)) is not None}
    say_cost(len(asked), len(found), predict(asked, found))
    for cell in asked:
        if only_cached or cell in found:
            continue
        if not bench.measurable(cell):
            print(f"left out: {cell} (no model at --model, no --encoder, or no --public)", flush=True)
            continue
        found[cell] = bench.find(cell) or bench.measure(cell)  # found: the same as another budget's
        print(report(found[cell]), flush=True)
    return {cell: found[cell] for cell in asked if cell in found}


def say_cost(asked: int, there: int, cost: Cost | None) -> None:
    """Print how much is there, and what is left costs."""
    text = f"{there} of {asked} cells are there"
    if cost is not None:
        text += f"; all of them cost about {cost.total:.1f} processor hours, those that are left {cost.left:.1f}"
        text += f" (guessed: {', '.join(cost.guessed)})" if cost.guessed else ""
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    asked = wanted(options)
    store = Store(options.folder, None if options.anew else PUBLISHED)
    public = PublicRows(asked.public, find(options.public)) if asked.public else None
    protocol = Protocol(asked.sizes, learning_rate=asked.learning_rate)
    bench = Bench(protocol, asked.most, options.model, options.encoder, store, public)
    found = measure(asked.cells, bench, only_cached=options.cached)
    results = list(found.values())
    table = markdown(results)
    print(f"\n{table}")
    if options.publish:
        store.publish()
        write_tables(PAGE, options.set, asked.cells, found)
    if options.json:
        from dataflex.utils.files import write_json

        write_json(options.json, results)
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
