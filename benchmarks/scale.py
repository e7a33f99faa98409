"""What data cost by their size: each phase of a run but its gradients, private memory, bytes on disk.

Usage: python benchmarks/scale.py [--quick] [--rows 2000 20000 200000] [--model DIR] [--workers N] [--json FILE]

Synthetic rows of about 234 tokens, in a JSON Lines file, are tokenised into a new cache by one fresh process and read
by two others at the same time, as two ranks do; ``datasets.map`` tokenises the same rows with the same tokenizer and
template. What is done with them besides is timed in one more process. Gradients are not computed.

A phase is a straight line where ten times the rows cost at most 10.5 times as much, constant costs included.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

QUICK, FULL = (2_000, 8_000), (2_000, 20_000, 200_000)
WORDS = 97
"""Words a row, which are about 234 tokens of SmolLM2 with its template."""
NEW = 0.07
"""Share of the words that are put together of two, so that words that were not met before keep coming as in English."""
MAPPED = 20_000
"""Rows up to which ``datasets.map`` runs too."""
LIMITS = {"first": 0.25, "again": 0.02, "tokens": 1200.0, "private": 100.0}
"""CPU seconds a 1,000 rows, bytes a row of 234 tokens, bytes of private memory a row."""
MODEL = Path(__file__).resolve().parents[1] / "examples" / "quickstart" / "models" / "SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class Start:
    """What one start cost: seconds on the clock and of CPUs, private memory that it left (bytes), tokens."""

    wall: float
    cpu: float
    private: int
    tokens: int
    rows: int


@dataclass(frozen=True, slots=True)
class Scale:
    """All that was measured of one size.

    Attributes:
        rows: How many.
        first: The start that tokenises.
        ranks: Two that start again, at the same time.
        map: ``datasets.map``; None: not run at this size.
        use: CPU seconds of what is done with the rows besides (:func:`use`).
        token_bytes: Bytes of the arrays of tokens on disk.
        text_bytes: Of the texts beside them.
    """

    rows: int
    first: Start
    ranks: tuple[Start, Start]
    map: Start | None
    use: dict[str, float]
    token_bytes: int
    text_bytes: int

    @property
    def again(self) -> Start:
        """The dearer one of the ranks, in CPU seconds."""
        return max(self.ranks, key=lambda rank: rank.cpu)


def write_rows(path: Path, count: int) -> None:
    """Rows of made-up words, from a vocabulary that a tokenizer splits as it does English."""
    draw = random.Random(count)
    words = (Path(__file__).resolve().parents[1] / "docs" / "faq.md").read_text(encoding="utf-8").split()
    with path.open("w", encoding="utf-8") as file:
        for row in range(count):
            text = [word + draw.choice(words) if draw.random() < NEW else word for word in draw.choices(words, k=WORDS)]
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


def use(path: Path, cache: Path, model: str | None) -> dict[str, float]:
    """CPU seconds of what is done with rows that are tokenised; meant for a fresh process."""
    import numpy as np

    from dataflex.data.sources import open_samples
    from dataflex.doctor.look import look
    from dataflex.utils.groups import group_rows, length_names

    template = template_of(model)
    dataset = load(path, cache, template)
    draw = np.random.default_rng(0)
    scores, chosen = draw.standard_normal(len(dataset)), np.zeros(len(dataset), dtype=np.bool_)
    chosen[np.argsort(-scores)[: len(dataset) // 20]] = True
    places = np.flatnonzero(chosen).tolist()
    rows = [dataset.row_numbers()[place] for place in places]
    works: dict[str, Callable[[], Any]] = {
        "counts by task and by length, four rounds": lambda: [
            group_rows([str(name) for name in dataset.groups("task")], [(chosen, scores)] * 4),
            group_rows(length_names(dataset.lengths), [(chosen, scores)] * 4),
        ],
        "a twentieth of the rows, read again": lambda: open_samples(path).originals(rows),
        "a twentieth of the rows, ids and labels": lambda: [
            (row.input_ids, row.labels) for row in dataset.select(places)
        ],
        "doctor: a look at 1,000 rows": lambda: look(open_samples(path), template, 2048),
    }
    spent = {}
    for name, work in works.items():
        before = cpu_seconds()
        work()
        spent[name] = cpu_seconds() - before
    return spent


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
    before, wall, cpu = private_bytes(), time.perf_counter(), cpu_seconds()
    held = work()
    cost = time.perf_counter() - wall, cpu_seconds() - cpu
    added = private_bytes() - before
    return Start(*cost, added, tokens(held), len(held))


def cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


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


def measure(count: int, model: str | None, workers: int | None, folder: Path) -> Scale:
    """All that is measured of one size."""
    path, cache = folder / "rows.jsonl", folder / "cache"
    write_rows(path, count)
    first = fresh(start, path, cache, model, workers)
    ranks = both(start, path, cache, model, workers)
    sizes = {file.stem: file.stat().st_size for file in cache.rglob("*.npy")}
    texts = sum(sizes[name] for name in ("turns", "metadata", "ids"))
    plain = fresh(mapped, path, folder / "map", model) if count <= MAPPED else None
    used = fresh(use, path, cache, model)
    return Scale(count, first, ranks, plain, used, sum(sizes.values()) - texts, texts)


def growth(found: Sequence[Scale]) -> dict[str, float]:
    """Cost a row at the largest size over that at the size before it, of each phase and of memory and disk."""
    before, last = found[-2], found[-1]

    def costs(it: Scale) -> dict[str, float]:
        return {
            "first start, CPU": it.first.cpu,
            "second start, CPU": it.again.cpu,
            **it.use,
            "bytes on disk": it.token_bytes + it.text_bytes,
        }

    small, large = costs(before), costs(last)
    return {name: (large[name] / last.rows) / (small[name] / before.rows) for name in small}


def outcomes(found: Sequence[Scale]) -> list[tuple[str, float, float, bool]]:
    """Each goal with its value, its limit and whether it is met, at the largest size."""
    last = found[-1]
    values = {
        "first start, CPU s a 1,000 rows": (1000 * last.first.cpu / last.rows, LIMITS["first"]),
        "second start, CPU s a 1,000 rows": (1000 * last.again.cpu / last.rows, LIMITS["again"]),
        "second start over the first, wall": (last.again.wall / last.first.wall, 0.05),
        **{
            f"first start over datasets.map, CPU, {it.rows:,} rows": (it.first.cpu / it.map.cpu, 1.0)
            for it in found
            if it.map is not None
        },
        "bytes of tokens a row of 234": (last.token_bytes / last.first.tokens * 234, LIMITS["tokens"]),
        "private bytes a row, each of two ranks": (private(found), LIMITS["private"]),
    }
    if len(found) > 1:
        values |= {
            f"a row's cost, largest size over the one before: {name}": (it, 1.05) for name, it in growth(found).items()
        }
    return [(name, value, limit, value <= limit) for name, (value, limit) in values.items()]


def private(found: Sequence[Scale]) -> float:
    """Bytes of private memory a row of the rank that has more of it; what rows add, if there are two sizes."""
    last = found[-1]
    if len(found) < 2:
        return max(rank.private for rank in last.ranks) / last.rows
    before = found[-2]
    added = [large.private - small.private for small, large in zip(before.ranks, last.ranks, strict=True)]
    return max(added) / (last.rows - before.rows)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description="Measure what data cost by their size.")
    parser.add_argument("--quick", action="store_true", help="two small sizes")
    parser.add_argument("--rows", type=int, nargs="+", default=None)
    parser.add_argument("--model", default=str(MODEL) if MODEL.exists() else None, help="folder of a tokenizer")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--folder", type=Path, default=None, help="where temporary files are made")
    parser.add_argument("--json", type=Path, default=None, help="write everything that was measured")
    options = parser.parse_args()
    print(f"tokenizer: {options.model or 'tiny (no model was found)'}; load {os.getloadavg()[0]:.1f} at the start")
    print(
        f"{'rows':>9} {'first s':>9} {'CPU s':>8} {'again s':>8} {'CPU s':>7} {'map CPU s':>10} {'private B/row':>14}"
    )
    found = []
    for count in options.rows or (QUICK if options.quick else FULL):
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            found.append(measure(count, options.model, options.workers, Path(name)))
        it = found[-1]
        line = f"{it.rows:>9,} {it.first.wall:>9.1f} {it.first.cpu:>8.1f} {it.again.wall:>8.2f} {it.again.cpu:>7.2f}"
        print(f"{line} {it.map.cpu if it.map else math.nan:>10.1f} {it.again.private / it.rows:>14.0f}", flush=True)
    for name, value, limit, met in outcomes(found):
        print(f"{'met' if met else 'MISSED':>6}  {name}: {value:.3g}, at most {limit:g}")
    if options.json:
        options.json.write_text(json.dumps([asdict(it) for it in found], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
