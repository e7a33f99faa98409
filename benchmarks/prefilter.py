"""A selection with a prefilter beside the full pass: what each costs, what the dry run says, and what each chooses.

Usage: python benchmarks/prefilter.py [--config FILE] [--prefilter rds] [--keep 0.25] [--json FILE] [KEY=VALUE ...]

The run of the configuration (the quickstart's, if none is named) warms up on its first random batches, then both
selections look at the same model: one at all rows, one at those that the prefilter keeps. Each is predicted by a dry
run before it is made, in the same process.

Lift is the share of the evaluation set's tasks among the selected rows over their share among all. Predictions are
compared in processor time, which other work on the machine does not change, and on the clock.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataflex.config import RunConfig, load_config, validate_component
from dataflex.curriculum.schedule import random_order
from dataflex.data import ChatTemplate
from dataflex.data.collate import collate
from dataflex.models.losses import mean_losses
from dataflex.models.model import load_tokenizer, trainable_parameters
from dataflex.offline.dry_run import Cost, DryRun, dry_run
from dataflex.selectors.base import Selection, SelectionContext
from dataflex.training.run import build_model, load_datasets
from dataflex.types import group_names
from dataflex.utils.facts import numbers

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
FULL = "all rows"


@dataclass(frozen=True)
class Outcome:
    """One selection.

    Attributes:
        name: Of the variant.
        looked_at: Rows with a score.
        predicted: Cost by the dry run.
        measured: Cost of the selection.
        parts: Per part, predicted seconds on the clock and measured ones.
        lift: Of the evaluation set's tasks.
        looked_at_lift: The same among the rows that were looked at.
        selected: Positions of the chosen rows.
    """

    name: str
    looked_at: int
    predicted: Cost
    measured: Cost
    parts: dict[str, tuple[float, float | None]]
    lift: float
    looked_at_lift: float
    selected: list[int]

    @property
    def ratio(self) -> float:
        """Measured over predicted processor time."""
        return self.measured.cpu / self.predicted.cpu


def run(options: argparse.Namespace) -> list[Outcome]:
    """Both selections, the full pass first."""
    config = load_config(options.config, options.overrides, check_component=True)
    prefilter = {"name": options.prefilter, "keep": options.keep}
    variants = {FULL: {}, f"{options.prefilter}, keep {options.keep:g}": {"prefilter": prefilter}}
    with tempfile.TemporaryDirectory() as folder:
        context = warmed_up(config, Path(folder))
        return [
            outcome(name, config, replace(context, output_dir=Path(folder) / str(place)), changes)
            for place, (name, changes) in enumerate(variants.items())
        ]


def warmed_up(config: RunConfig, folder: Path) -> SelectionContext:
    """The context of the run's first selection."""
    tokenizer = load_tokenizer(config.locate(config.model_name_or_path))
    template = ChatTemplate.load(config.template, tokenizer)
    training, evaluation = load_datasets(config, template)
    model = build_model(config)
    batch = config.per_device_train_batch_size * config.gradient_accumulation_steps
    optimizer = torch.optim.AdamW((p for _, p in trainable_parameters(model)), lr=config.learning_rate)
    rows = random_order(len(training), 0, config.warmup_step * batch, seed=config.seed, shuffle=True)
    for start in range(0, len(rows), batch):
        examples = [training[int(row)] for row in rows[start : start + batch]]
        mean_losses(model, collate(examples, int(tokenizer.pad_token_id))).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    count = config.update_step * batch
    return SelectionContext(
        model=model,
        tokenizer=tokenizer,
        template=template,
        train_dataset=training,
        eval_dataset=evaluation,
        num_samples=count,
        step=config.warmup_step,
        round=1,
        num_rounds=config.update_times,
        total_samples=count * config.update_times,
        seed=config.seed,
        output_dir=folder,
        optimizer=optimizer,
        autocast=nullcontext,
    )


def outcome(name: str, config: RunConfig, context: SelectionContext, changes: dict[str, Any]) -> Outcome:
    """Predict a selection, make it, and compare."""
    spec = config.component()
    selector = validate_component(spec).from_params({**spec.params, **changes})
    try:
        selector.check(context)
        expected = dry_run(selector, context)
        for note in expected.notes:
            print(f"{name}: {note}", flush=True)
        wall, cpu = time.perf_counter(), time.process_time()
        found = selector.select(context)
        measured = Cost(time.perf_counter() - wall, time.process_time() - cpu)
    finally:
        selector.close()
    scores = found.scores if found.scores is not None else np.zeros(len(context.train_dataset))
    looked_at = np.flatnonzero(~np.isnan(scores))
    return Outcome(
        name,
        len(looked_at),
        expected.total,
        measured,
        compared_parts(expected, found),
        lift(context, config.task_column, found.indices),
        lift(context, config.task_column, looked_at),
        found.indices.tolist(),
    )


def compared_parts(expected: DryRun, found: Selection) -> dict[str, tuple[float, float | None]]:
    """Predicted and measured seconds on the clock of each part."""
    seconds = numbers(found.report.get("seconds"))
    return {part.name: (part.cost.wall, seconds.get(part.name)) for part in expected.parts}


def lift(context: SelectionContext, column: str, rows: Sequence[int] | np.ndarray[Any, Any]) -> float:
    """Share of the evaluation set's tasks among some rows over their share among all."""
    wanted = {*group_names(context.eval_dataset.samples if context.eval_dataset else [], column)}
    target = np.array([task in wanted for task in group_names(context.train_dataset.samples, column)])
    return float(target[np.asarray(rows)].mean() / target.mean())


def lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The comparison as Markdown."""
    full = outcomes[0]
    head = ("", "looked at", "predicted CPU s", "measured CPU s", "ratio", "wall s", "lift", "in the full pass too")
    yield f"| {' | '.join(head)} |"
    yield "|---|---|---|---|---|---|---|---|"
    for one in outcomes:
        shared = len({*one.selected} & {*full.selected}) / len(full.selected)
        yield (
            f"| {one.name} | {one.looked_at} | {one.predicted.cpu:.1f} | {one.measured.cpu:.1f} | {one.ratio:.2f} | "
            f"{one.measured.wall:.1f} | {one.lift:.2f}x | {shared:.0%} |"
        )
    for one in outcomes[1:]:
        yield f"lift of the rows that {one.name} left: {one.looked_at_lift:.2f}x"
    for one in outcomes:
        for part, (predicted, measured) in one.parts.items():
            known = "-" if measured is None else f"{measured:.1f}"
            yield f"{one.name}: {part}: predicted {predicted:.1f} s, measured {known} s on the clock"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--config", type=Path, default=ROOT / "examples" / "quickstart" / "nice.yaml")
    parser.add_argument("--prefilter", default="rds", help="selector that goes first")
    parser.add_argument("--keep", type=float, default=0.25, help="share of the rows that it leaves")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replaces a key of the configuration")
    options = parser.parse_args(arguments)
    if options.config.is_relative_to(ROOT) and not any(o.startswith("model_name_or_path=") for o in options.overrides):
        options.overrides = [f"model_name_or_path={MODEL}", *options.overrides]
    return options


def main() -> None:
    """Run and print."""
    options = parse()
    logging.basicConfig(level=logging.WARNING)
    outcomes = run(options)
    print("\n".join(lines(outcomes)))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
