"""Exact scores beside other packages: the same rows, model and targets, in turns, in one run.

    python benchmarks/peers.py [--rows 64] [--targets 16] [--rounds 3] [--json FILE]

A candidate's score is its mean cosine with the targets, over the raw gradients of all LoRA weights, without
projection: what dataflex, dattri-llm and bergson all compute, and the loop over single rows that the scripts of papers
have. All get the same batches; the scores of each are compared with the loop's. ``forward and backward`` is the least
that any of them must do.

Packages that are not installed are skipped by name. Give them an environment of their own (benchmarks/README.md).
Ratios are medians over the rounds; processor time is that of the process over the number of threads. Memory is what a
call adds to the peak of the process.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataflex.data import ChatTemplate, load_samples, tokenize
from dataflex.gradients.layout import by_length
from dataflex.models.model import add_lora, load_model, load_tokenizer, undisturbed
from dataflex.testing import tiny_context
from dataflex.utils.files import write_json, write_text
from measuring import scorers
from measuring.machine import describe, facts
from measuring.scorers import LOOP, OURS, PLAIN, WAYS, Rows, Task, Way
from measuring.timing import BASELINE, PEER, Contender, Times, measure, paired_ratio

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "quickstart" / "data"
SAME = 1e-3  # most that two ways' cosines of float32 gradients may differ


def make_task(options: argparse.Namespace) -> Task:
    """The model with an adapter that has taken two steps, and rows of the quickstart."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(options.model))
    model = add_lora(load_model(str(options.model)), rank=options.rank, alpha=2 * options.rank).eval()
    template = ChatTemplate.load("chatml", tokenizer)

    def rows(name: str, count: int) -> Rows:
        samples = load_samples(str(DATA / name), max_samples=count)
        data = tokenize(samples, template, options.cutoff, progress=False)
        batches = by_length(np.asarray(data.lengths, np.int64), options.batch_tokens).rows_of()
        return Rows(data, [list(map(int, batch)) for batch in batches], int(tokenizer.pad_token_id))

    candidates, targets = rows("train.jsonl", options.rows), rows("eval.jsonl", options.targets)
    optimizer = torch.optim.AdamW((value for value in model.parameters() if value.requires_grad), lr=1e-4)
    for batch in candidates.batches[:2]:
        scorers.mean_losses(model, candidates.batch(batch)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return Task(model, tiny_context(Path(), model=model, tokenizer=tokenizer), candidates, targets)


def available(ways: Sequence[Way]) -> list[Way]:
    """The ways that can be run; says which cannot, and what they need."""
    found = []
    for way in ways:
        if (command := way.missing()) is None:
            found.append(way)
        else:
            print(f"skipped: {way.name}: {command}")
    return found


@dataclass
class Kept:
    """A call whose last result is kept."""

    make: Callable[[], Tensor | None]
    scores: Tensor | None = None

    def run(self) -> None:
        """Call."""
        self.scores = self.make()


def compare(task: Task, ways: Sequence[Way], rounds: int) -> tuple[dict[str, Times], dict[str, float]]:
    """Times by name, and by how much each way's scores differ from the loop's."""
    calls = {way.name: Kept(way.prepare(task)) for way in ways}
    contenders = [Contender(name, BASELINE if name == PLAIN else PEER, call.run) for name, call in calls.items()]
    with undisturbed(task.model):
        times = measure(contenders, rounds, torch.device("cpu"))
    expected = calls[LOOP].scores
    assert expected is not None
    return times, {
        name: float((call.scores - expected).abs().max()) for name, call in calls.items() if call.scores is not None
    }


def table(times: dict[str, Times], apart: dict[str, float]) -> str:
    """Markdown: a row a way."""
    head = ["", "s, wall (processor)", "times forward and backward", "times dataflex", "peak, MiB", "scores differ by"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|---|---|"]
    for name, found in times.items():
        base, own = (paired_ratio(found.processor, times[other].processor) for other in (PLAIN, OURS))
        beside = "" if name in (PLAIN, OURS) else f"{own:.3f}"
        memory = "" if found.memory is None else f"{found.memory / 2**20:,.0f}"
        difference = f"{apart[name]:.1g}" if name in apart else ""
        seconds = f"{found.median():.1f} ({found.processor_median():.1f})"
        lines.append(f"| {name} | {seconds} | {base:.3f} | {beside} | {memory} | {difference} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=64, help="candidates")
    parser.add_argument("--targets", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--cutoff", type=int, default=512)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write every time here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; 1 if a way's scores are others or dataflex is slower than another package."""
    options = parse(arguments)
    warnings.filterwarnings("ignore", category=UserWarning)
    ways = available(WAYS)
    machine = facts(torch.device("cpu"))
    machine["versions"] |= {way.package.split("==")[0]: way.version() for way in ways if way.package}
    task = make_task(options)
    sizes = f"{len(task.candidates.data)} candidates, {len(task.targets.data)} targets, rank {options.rank}"
    head = f"{describe(machine)}\n\n{options.model.name}, {sizes}, {options.rounds} rounds\n"
    print(head, flush=True)
    times, apart = compare(task, ways, options.rounds)
    text = f"{head}\n{table(times, apart)}\n"
    print(text.removeprefix(head))
    if options.json:
        found = {name: {**vars(one), "scores_differ_by": apart.get(name)} for name, one in times.items()}
        settings = {"rows": options.rows, "targets": options.targets, "rank": options.rank, "rounds": options.rounds}
        write_json(options.json, {"machine": machine, "settings": settings, "ways": found})
    if options.markdown:
        write_text(options.markdown, text)
    different = [name for name, difference in apart.items() if difference > SAME]
    slower = [
        name
        for name, one in times.items()
        if name not in (PLAIN, OURS) and (paired_ratio(one.processor, times[OURS].processor) or 1) < 1
    ]
    for problem, names in (("their scores are others", different), ("dataflex is slower", slower)):
        if names:
            print(f"{problem}: {', '.join(names)}")
    return 1 if different or slower else 0


if __name__ == "__main__":
    raise SystemExit(main())
