"""How long the help of each command takes, beside a Python that does nothing.

    python benchmarks/help.py [--rounds 9] [--json help.json]

In every round a bare interpreter and each command's ``--help`` start once, each in a process of its own; a first round
does not count. The difference is the median over rounds of help minus interpreter in the same round: other work on the
machine hits both alike. Time on the clock is what a user waits for, CPU time is what a busy machine still tells.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from dataflex.cli import cli

GOAL_MS = 150.0


@dataclass(frozen=True)
class Spent:
    """Milliseconds of one process."""

    wall: float
    cpu: float


def command_paths(group: click.Group, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The group itself and every command below it, as the words that a user types."""
    yield above
    with click.Context(group) as ctx:
        for name in group.list_commands(ctx):
            command = group.get_command(ctx, name)
            if isinstance(command, click.Group):
                yield from command_paths(command, (*above, name))
            else:
                yield (*above, name)


def run(arguments: list[str]) -> Spent:
    """Start Python once and wait for it."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return Spent(1000 * wall, 1000 * cpu)


def measure(rounds: int) -> dict[str, list[tuple[Spent, Spent]]]:
    """(help, bare interpreter) of every round, by command."""
    paths = {" ".join(("dataflex", *path)): path for path in command_paths(cli)}
    found: dict[str, list[tuple[Spent, Spent]]] = {name: [] for name in paths}
    for turn in range(rounds + 1):
        for name, path in paths.items():
            pair = run(["-m", "dataflex", *path, "--help"]), run(["-c", "pass"])
            if turn:
                found[name].append(pair)
    return found


def differences(pairs: list[tuple[Spent, Spent]]) -> dict[str, float]:
    """Medians over rounds, in milliseconds, and the ratio of the times on the clock."""
    return {
        "wall_ms": statistics.median(mine.wall - bare.wall for mine, bare in pairs),
        "cpu_ms": statistics.median(mine.cpu - bare.cpu for mine, bare in pairs),
        "ratio": statistics.median(mine.wall / bare.wall for mine, bare in pairs),
    }


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description="Time the help of every command beside a bare interpreter.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args()
    rows = {name: differences(pairs) for name, pairs in measure(options.rounds).items()}
    print("| command | over a bare interpreter, ms | CPU, ms | ratio |\n| --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| `{name} --help` | {row['wall_ms']:.0f} | {row['cpu_ms']:.0f} | {row['ratio']:.1f} |")
    worst = max(rows, key=lambda name: rows[name]["wall_ms"])
    met = "met" if rows[worst]["wall_ms"] <= GOAL_MS else "missed"
    print(f"\ngoal: at most {GOAL_MS:.0f} ms more than a bare interpreter: {met} (`{worst}`)")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
