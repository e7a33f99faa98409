"""Time of the fused Adam + sjlt projection, beside the Adam arithmetic alone and the plain torch projection.

Usage: python benchmarks/projection.py [--parameters 1000000] [--dim 4096] [--rounds 5]

The variants take turns in every round, so that other work on the machine hits all of them; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from dataflex.adam import AdamMoments, adam_normalize
from dataflex.kernels import fixed_point, sjlt
from dataflex.kernels.block import Block, arguments
from dataflex.kernels.native import native_status
from dataflex.projection import Projector


def variants(rows: int, count: int, dim: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name, for ``rows`` gradients of ``count`` parameters."""
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(rows, count, generator=generator)
    adam = AdamMoments(torch.zeros(count), torch.ones(count), step=10, betas=(0.9, 0.999), eps=1e-8)
    projector = Projector(dim)

    def plain() -> None:
        sjlt.accumulate_reference(
            Block(*arguments(grads, 0, adam)),
            torch.full((rows,), fixed_point.adam_exponent(adam.betas, sjlt.LIMIT), dtype=torch.int32),
            sums=torch.zeros(rows, dim, dtype=torch.int64),
            not_finite=torch.zeros(rows, dtype=torch.uint8),
            saturated=torch.zeros(rows, dtype=torch.int64),
            seed=0,
            sparsity=8,
        )

    return {
        "adam, torch": lambda: adam_normalize(grads, adam),
        "adam + sjlt": lambda: projector.project(grads, adam),
        "sjlt": lambda: projector.project(grads),
        "adam + sjlt, torch": plain,
    }


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each function; the first round does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"p = {options.parameters}, k = {options.dim}, {torch.get_num_threads()} threads; {native_status().reason}")
    for rows in (1, 8, 32):
        times = medians(variants(rows, options.parameters, options.dim), options.rounds)
        for name, seconds in times.items():
            print(f"b = {rows:2}  {name:<20} {1000 * seconds / rows:9.2f} ms a row")


if __name__ == "__main__":
    main()
