"""What data cost by their size: loading, tokenising, starting again, memory a process, bytes on disk.

Usage: python benchmarks/scale.py [--quick] [--rows 2000 20000 200000] [--model DIR] [--workers N] [--json FILE]

Synthetic rows of about 234 tokens, in a JSON Lines file, are tokenised into a new cache by one fresh process and read
by a second; ``datasets.map`` tokenises the same rows with the same tokenizer and template. Gradients are not computed.
The growth exponent is that between the two largest sizes: 1 is a straight line.
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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

QUICK, FULL = (2_000, 8_000), (2_000, 20_000, 200_000)
WORDS = 104
"""Words a row, which are about 234 tokens of SmolLM2 with its template."""
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
    """All that was measured of one size; bytes of the arrays of tokens, and of the texts beside them."""

    rows: int
    first: Start
    again: Start
    map: Start
    token_bytes: int
    text_bytes: int


def write_rows(path: Path, count: int) -> None:
    """Rows of made-up words, from a vocabulary that a tokenizer splits as it does English."""
    draw = random.Random(count)
    words = (Path(__file__).resolve().parents[1] / "docs" / "faq.md").read_text(encoding="utf-8").split()
    with path.open("w", encoding="utf-8") as file:
        for row in range(count):
            text = draw.choices(words, k=WORDS)
            values = {"prompt": " ".join(text[:40]), "completion": " ".join(text[40:]), "task": f"t{row % 9}"}
            file.write(json.dumps(values) + "\n")


def template_of(model: str | None) -> Any:
    """The model's own template, or ``chatml`` with the tiny tokenizer where there is no model."""
    from dataflex.data import ChatTemplate
    from dataflex.models.model import load_tokenizer
    from dataflex.testing import tiny_tokenizer

    return ChatTemplate.load(None, load_tokenizer(model)) if model else ChatTemplate.load("chatml", tiny_tokenizer())


def start(path: Path, cache: Path, model: str | None, workers: int | None) -> Start:
    """Load and tokenise, as a run does; meant for a fresh process."""
    from dataflex.data.cache import CacheSettings
    from dataflex.data.dataset import kept_dataset
    from dataflex.data.prepare import tokenised_rows
    from dataflex.data.sources import open_samples

    template = template_of(model)

    def work() -> Any:
        rows = tokenised_rows(open_samples(path), template, 2048, CacheSettings(cache, workers=workers))
        dataset = kept_dataset(rows, keep_unlabelled=False, name="rows")
        assert dataset.fingerprint
        return dataset, dataset.report.tokens, len(dataset)

    return measured(work)


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
        found = data.map(encode, batched=True, remove_columns=data.column_names)
        return found, sum(map(len, found[:]["input_ids"])) if len(found) < 50_000 else 0, len(found)

    return measured(work)


def measured(work: Callable[[], Any]) -> Start:
    """The cost of ``work``, whose result is held while the memory is looked at."""
    before, wall, cpu = private_bytes(), time.perf_counter(), cpu_seconds()
    held, tokens, rows = work()
    cost = time.perf_counter() - wall, cpu_seconds() - cpu
    found = Start(*cost, private_bytes() - before, tokens, rows)
    del held
    return found


def cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def private_bytes() -> int:
    """Memory that no other process can share: pages that were written to (Linux)."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


def fresh(function: Callable[..., Start], *arguments: Any) -> Start:
    """``function`` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(count: int, model: str | None, workers: int | None, folder: Path) -> Scale:
    """All that is measured of one size."""
    path, cache = folder / "rows.jsonl", folder / "cache"
    write_rows(path, count)
    first = fresh(start, path, cache, model, workers)
    again = fresh(start, path, cache, model, workers)
    sizes = {file.stem: file.stat().st_size for file in cache.rglob("*.npy")}
    texts = sum(sizes[name] for name in ("turns", "metadata", "ids"))
    return Scale(count, first, again, fresh(mapped, path, folder / "map", model), sum(sizes.values()) - texts, texts)


def exponent(small: tuple[int, float], large: tuple[int, float]) -> float:
    """The power of the size that a cost grows with between two sizes."""
    return math.log(large[1] / small[1]) / math.log(large[0] / small[0])


def outcomes(found: Sequence[Scale]) -> list[tuple[str, float, float, bool]]:
    """Each goal with its value, its limit and whether it is met, at the largest size."""
    last = found[-1]
    values = {
        "first start, CPU s a 1,000 rows": (1000 * last.first.cpu / last.rows, LIMITS["first"]),
        "second start, CPU s a 1,000 rows": (1000 * last.again.cpu / last.rows, LIMITS["again"]),
        "second start over the first, wall": (last.again.wall / last.first.wall, 0.05),
        "first start over datasets.map, CPU": (last.first.cpu / last.map.cpu, 1.0),
        "bytes of tokens a row of 234": (last.token_bytes / last.first.tokens * 234, LIMITS["tokens"]),
        "private bytes a row, second start": (last.again.private / last.rows, LIMITS["private"]),
    }
    if len(found) > 1:
        before = found[-2]
        power = exponent((before.rows, before.first.cpu), (last.rows, last.first.cpu))
        values["growth of the first start (1: a straight line)"] = (power, 1.05)
    return [(name, value, limit, value <= limit) for name, (value, limit) in values.items()]


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
        print(f"{line} {it.map.cpu:>10.1f} {it.again.private / it.rows:>14.0f}", flush=True)
    for name, value, limit, met in outcomes(found):
        print(f"{'met' if met else 'MISSED':>6}  {name}: {value:.3g}, at most {limit:g}")
    if options.json:
        options.json.write_text(json.dumps([asdict(it) for it in found], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
