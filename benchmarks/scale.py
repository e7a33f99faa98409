"""What data cost by their size: each phase of a run but its gradients, peak and private memory, bytes on disk.

Usage: python benchmarks/scale.py [--quick] [--rows 2000 20000 200000] [--model DIR] [--workers N] [--json FILE]

Synthetic rows of about 234 tokens, in a JSON Lines file, are tokenised into a new cache by one fresh process and read
by two others at the same time, as two ranks do; ``datasets.map`` tokenises the same rows with the same tokenizer and
template. What is done with them besides (measuring/phases.py) is timed in forks of one more process. Gradients are not
computed: what is kept of them is made up.

A process is charged more for the same work while another one runs on the same core, so the seconds of a first start
that count are those of one that runs alone, next to ``datasets.map``.

A phase is a straight line where ten times the rows cost at most 10.5 times as much processor time and memory, constant
costs included. Other work on a machine makes every processor second dearer, now more and now less, so two sizes are
compared that were measured at the same time: while the larger one is tokenised, so is the smaller one, again and again
(the median counts); of the other phases the sizes take turns, and the least of --rounds counts.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch

from measuring.memory import PeakMemory
from measuring.phases import Cost, Rows, cpu_seconds, measure_phases

T = TypeVar("T")

QUICK, FULL = (2_000, 8_000), (2_000, 20_000, 200_000)
WORDS = 97
"""Words a row, which are about 234 tokens of SmolLM2 with its template."""
NEW = 0.07
"""Share of the words that are put together of two, so that words that were not met before keep coming as in English."""
MAPPED = 20_000
"""Rows up to which ``datasets.map`` runs too."""
STRAIGHT = 1.05
"""A row's cost at the largest size over that at the size before, at most."""
LIMITS = {"first": 0.25, "again": 0.02, "tokens": 1200.0, "private": 100.0}
"""CPU seconds a 1,000 rows, bytes a row of 234 tokens, bytes of private memory a row."""
MODEL = Path(__file__).resolve().parents[1] / "models" / "SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class Start:
    """What one start cost: seconds on the clock and of CPUs, bytes of memory (private left, peak), tokens."""

    wall: float
    cpu: float
    private: int
    peak: int
    tokens: int
    rows: int


@dataclass(frozen=True, slots=True)
class Scale:
    """All that was measured of one size.

    Attributes:
        rows: How many.
        first: The start that tokenises.
        beside: First starts of the size before, while this one ran.
        ranks: Two that start again, at the same time.
        alone: A first start with nothing beside it, and ``datasets.map``; None: not run at this size.
        token_bytes: Bytes of the arrays of tokens on disk.
        text_bytes: Of the texts beside them.
        phases: What else is done with the rows.
    """

    rows: int
    first: Start
    beside: list[Start]
    ranks: tuple[Start, Start]
    alone: tuple[Start, Start] | None
    token_bytes: int
    text_bytes: int
    phases: dict[str, Cost]

    @property
    def again(self) -> Start:
        """The dearer one of the ranks, in CPU seconds."""
        return max(self.ranks, key=lambda rank: rank.cpu)


def write_rows(path: Path, count: int) -> None:
    """Rows of made-up words, from a vocabulary that a tokenizer splits as it does English."""
    draw = random.Random(count)
    words = (Path(__file__).resolve().parents[1] / "docs" / "faq.md").read_text(encoding="utf-8").split()
    joined = round(NEW * WORDS)
    with path.open("w", encoding="utf-8") as file:
        for row in range(count):
            text = draw.choices(words, k=WORDS)
            for place, word in zip(draw.choices(range(WORDS), k=joined), draw.choices(words, k=joined), strict=True):
                text[place] += word
            values = {"prompt": " ".join(text[:40]), "completion": " ".join(text[40:]), "task": f"t{row % 9}"}
            file.write(json.dumps(values) + "\n")


def template_of(model: str | None) -> Any:
    """The model's own template, or ``chatml`` with the tiny tokenizer where there is no model."""
    from dataflex.data import ChatTemplate
    from dataflex.models.model import load_tokenizer
    from dataflex.testing import tiny_tokenizer

    return ChatTemplate.load(None, load_tokenizer(model)) if model else ChatTemplate.load("chatml", tiny_tokenizer())


def load(path: Path, cache: Path, template: Any, workers: int | None = None) -> Any:
    """The dataset, as a run loads it."""
    from dataflex.data.cache import CacheSettings
    from dataflex.data.dataset import kept_dataset
    from dataflex.data.prepare import tokenised_rows
    from dataflex.data.sources import open_samples

    rows = tokenised_rows(open_samples(path), template, 2048, CacheSettings(cache, workers=workers))
    return kept_dataset(rows, keep_unlabelled=False, name="rows")


def start(path: Path, cache: Path, model: str | None, workers: int | None) -> Start:
    """Load and tokenise, as a run does; meant for a fresh process."""
    template = template_of(model)

    def work() -> Any:
        dataset = load(path, cache, template, workers)
        assert dataset.fingerprint
        return dataset

    return measured(work, lambda dataset: dataset.report.tokens)


def starts_until(flag: Path, path: Path, folder: Path, model: str | None, workers: int | None) -> list[Start]:
    """First starts, each into a new cache, until a file is there; meant for a fresh process."""
    found: list[Start] = []
    while not flag.exists():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            found.append(start(path, Path(name), model, workers))
    return found


def phases(folders: Sequence[Path], model: str | None, rounds: int) -> list[dict[str, Cost]]:
    """What is done with rows that are tokenised, of each size; meant for a fresh process.

    The least of each cost in some rounds, in which the sizes take turns.
    """
    template = template_of(model)
    sizes = [Rows(own / "rows.jsonl", load(own / "rows.jsonl", own / "cache", template), template) for own in folders]
    found: list[list[dict[str, Cost]]] = []
    for _ in range(rounds):
        found.append([])
        for rows, own in zip(sizes, folders, strict=True):
            with tempfile.TemporaryDirectory(dir=own) as name:
                found[-1].append(measure_phases(rows, Path(name)))
    return [{name: least([each[name] for each in turns]) for name in turns[0]} for turns in zip(*found, strict=True)]


def least(costs: Sequence[Cost]) -> Cost:
    """The least of each kind."""
    return Cost(*(min(kind) for kind in zip(*((it.cpu, it.peak, it.files) for it in costs), strict=True)))


def mapped(path: Path, cache: Path, model: str | None) -> Start:
    """``datasets.map`` over the same rows: template and tokenizer, without labels; meant for a fresh process."""
    import datasets

    template = template_of(model)
    tokenizer = template.tokenizer

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        pairs = zip(batch["prompt"], batch["completion"], strict=True)
        texts = [
            template.render(({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}))
            for prompt, answer in pairs
        ]
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    def work() -> Any:
        data = datasets.Dataset.from_json(str(path), cache_dir=str(cache))
        return data.map(encode, batched=True, remove_columns=data.column_names)

    return measured(work, lambda found: sum(map(len, found[:]["input_ids"])))


def measured(work: Callable[[], Any], tokens: Callable[[Any], int]) -> Start:
    """The cost of ``work``, whose result is held while the memory is looked at, and counted afterwards."""
    with PeakMemory(torch.device("cpu")) as memory:
        before, wall, cpu = private_bytes(), time.perf_counter(), cpu_seconds()
        held = work()
        cost = time.perf_counter() - wall, cpu_seconds() - cpu
        added = private_bytes() - before
    return Start(*cost, added, memory.extra or 0, tokens(held), len(held))


def private_bytes() -> int:
    """Memory that no other process can share: pages that were written to (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


def fresh(function: Callable[..., T], *arguments: Any) -> T:
    """``function`` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def both(function: Callable[..., T], *arguments: Any) -> tuple[T, T]:
    """``function`` in two processes at the same time."""
    with ThreadPoolExecutor(2) as threads:
        first, second = (threads.submit(fresh, function, *arguments) for _ in range(2))
        return first.result(), second.result()


def starts(
    count: int, before: int | None, model: str | None, workers: int | None, folder: Path
) -> tuple[Start, list[Start]]:
    """The first start of a size, and those of the size before until that has ended."""
    own, other, flag = folder / str(count), folder / str(before), folder / "ended"
    flag.unlink(missing_ok=True)
    with ThreadPoolExecutor(1) as thread:
        beside = None
        if before is not None:
            beside = thread.submit(fresh, starts_until, flag, other / "rows.jsonl", folder, model, workers)
        try:
            first = fresh(start, own / "rows.jsonl", own / "cache", model, workers)
        finally:
            flag.touch()
        return first, [] if beside is None else beside.result()


def alone(count: int, model: str | None, workers: int | None, folder: Path) -> tuple[Start, Start] | None:
    """The first start and ``datasets.map``, one after the other."""
    if count > MAPPED:
        return None
    rows = folder / "rows.jsonl"
    return fresh(start, rows, folder / "alone", model, workers), fresh(mapped, rows, folder / "map", model)


def measure(count: int, before: int | None, model: str | None, workers: int | None, folder: Path) -> Scale:
    """All that is measured of one size, but its phases."""
    own = folder / str(count)
    own.mkdir()
    write_rows(own / "rows.jsonl", count)
    first, beside = starts(count, before, model, workers, folder)
    ranks = both(start, own / "rows.jsonl", own / "cache", model, workers)
    sizes = {file.stem: file.stat().st_size for file in (own / "cache").rglob("*.npy")}
    texts = sum(sizes[name] for name in ("turns", "metadata", "ids"))
    pair = alone(count, model, workers, own)
    return Scale(count, first, beside, ranks, pair, sum(sizes.values()) - texts, texts, {})


def growth(found: Sequence[Scale]) -> dict[str, float]:
    """Cost a row at the largest size over that at the size before it, of each phase: time, peak memory, disk."""
    before, last = found[-2], found[-1]
    beside = median(it.cpu for it in last.beside or [before.first])
    pairs = {
        "first start, CPU": (beside, last.first.cpu),
        "first start, peak memory": (before.first.peak, last.first.peak),
        "second start, CPU": (before.again.cpu, last.again.cpu),
        "bytes on disk": (before.token_bytes + before.text_bytes, last.token_bytes + last.text_bytes),
    }
    for name, cost in last.phases.items():
        small = before.phases[name]
        pairs |= {f"{name}, CPU": (small.cpu, cost.cpu), f"{name}, peak memory": (small.peak, cost.peak)}
        if cost.files:
            pairs[f"{name}, files"] = (small.files, cost.files)
    return {name: (large / last.rows) / (small / before.rows) for name, (small, large) in pairs.items() if small}


def outcomes(found: Sequence[Scale]) -> list[tuple[str, float, float, bool]]:
    """Each goal with its value, its limit and whether it is met; where no size is named, at the largest one."""
    last = found[-1]
    pairs = [(it.rows, *it.alone) for it in found if it.alone is not None]
    values = {
        **{
            f"first start alone, CPU s a 1,000 rows, {rows:,} rows": (1000 * first.cpu / rows, LIMITS["first"])
            for rows, first, _ in pairs[-1:]
        },
        "second start, CPU s a 1,000 rows": (1000 * last.again.cpu / last.rows, LIMITS["again"]),
        "second start over the first, wall": (last.again.wall / last.first.wall, 0.05),
        **{
            f"first start over datasets.map, CPU, {rows:,} rows": (first.cpu / plain.cpu, 1.0)
            for rows, first, plain in pairs
        },
        "bytes of tokens a row of 234": (last.token_bytes / last.first.tokens * 234, LIMITS["tokens"]),
        "private bytes a row, each of two ranks": (private(found), LIMITS["private"]),
    }
    if len(found) > 1:
        lines = growth(found).items()
        values |= {f"a row's cost, largest size over the one before: {name}": (it, STRAIGHT) for name, it in lines}
    return [(name, value, limit, value <= limit) for name, (value, limit) in values.items()]


def private(found: Sequence[Scale]) -> float:
    """Bytes of private memory a row of the rank that has more of it; what rows add, if there are two sizes."""
    last = found[-1]
    if len(found) < 2:
        return max(rank.private for rank in last.ranks) / last.rows
    before = found[-2]
    added = [large.private - small.private for small, large in zip(before.ranks, last.ranks, strict=True)]
    return max(added) / (last.rows - before.rows)


def table(found: Sequence[Scale]) -> str:
    """Markdown: a row of each phase costs so much at each size."""
    head = ["phase", *(f"{it.rows:,} rows: CPU us, peak bytes, bytes of files a row" for it in found)]
    lines = [head, ["---"] * len(head)]
    for name in found[-1].phases:
        costs = [(it.phases[name], it.rows) for it in found]
        cells = [f"{1e6 * it.cpu / n:,.1f}, {it.peak / n:,.0f}, {it.files / n:,.0f}" for it, n in costs]
        lines.append([name, *cells])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def line_of(it: Scale) -> str:
    """The starts of a size."""
    own, plain = (one.cpu for one in it.alone) if it.alone else (math.nan, math.nan)
    line = f"{it.rows:>9,} {it.first.wall:>9.1f} {it.first.cpu:>8.1f} {own:>9.1f} {plain:>10.1f}"
    return f"{line} {it.again.wall:>8.2f} {it.again.cpu:>7.2f} {it.again.private / it.rows:>14.0f}"


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description="Measure what data cost by their size.")
    parser.add_argument("--quick", action="store_true", help="two small sizes")
    parser.add_argument("--rows", type=int, nargs="+", default=None, help="sizes, from the smallest")
    parser.add_argument("--model", default=str(MODEL) if MODEL.exists() else None, help="folder of a tokenizer")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=3, help="times that each phase is measured at each size")
    parser.add_argument("--folder", type=Path, default=None, help="where temporary files are made")
    parser.add_argument("--json", type=Path, default=None, help="write everything that was measured")
    options = parser.parse_args()
    print(f"tokenizer: {options.model or 'tiny (no model was found)'}; load {os.getloadavg()[0]:.1f} at the start")
    print(
        f"{'rows':>9} {'first s':>9} {'CPU s':>8} {'alone CPU':>9} {'map CPU s':>10} {'again s':>8} {'CPU s':>7} "
        f"{'private B/row':>14}"
    )
    found: list[Scale] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for count in options.rows or (QUICK if options.quick else FULL):
            before = found[-1].rows if found else None
            found.append(measure(count, before, options.model, options.workers, Path(name)))
            print(line_of(found[-1]), flush=True)
        costs = fresh(phases, [Path(name) / str(it.rows) for it in found], options.model, options.rounds)
        found = [replace(it, phases=own) for it, own in zip(found, costs, strict=True)]
    print(table(found))
    for goal, value, limit, met in outcomes(found):
        print(f"{'met' if met else 'MISSED':>6}  {goal}: {value:.3g}, at most {limit:g}")
    if options.json:
        options.json.write_text(json.dumps([asdict(it) for it in found], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
