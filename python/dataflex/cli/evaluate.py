"""``dataflex eval``."""

from __future__ import annotations

from pathlib import Path

import click

from dataflex.cli.paths import UserPath
from dataflex.cli.run_file import run_file
from dataflex.utils.console import echo, print_json


@click.command(name="eval")
@run_file
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    help="Folder or hub id of an adapter, or folder of a model that was trained whole; several may be given.",
)
@click.option("--base-only", is_flag=True, help="Evaluate the base model alone.")
@click.option("--resamples", default=1000, show_default=True, type=click.IntRange(1), help="Bootstrap draws.")
@click.option("--answers", type=UserPath(dir_okay=False, path_type=Path), help="Write all answers here (JSON Lines).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def evaluate(
    config: str,
    overrides: tuple[str, ...],
    adapters: tuple[str, ...],
    base_only: bool,
    resamples: int,
    answers: Path | None,
    as_json: bool,
) -> None:
    """Compare base model and adapters (or models that were trained whole) on the evaluation data of CONFIG.

    CONFIG is the file of a training run: its base model, evaluation data (eval_dataset, or the rows that val_size
    splits off), template and precision are used. Without --adapter it is what the run has trained, in its output_dir.
    Printed are the loss on the reference answers and, where eval_metric names one, a metric of the model's own greedy
    answers (eval_metric=exact_match), with 95 % bootstrap intervals and paired differences to the base model.
    """
    from dataflex.config import load_config

    if base_only and adapters:
        raise click.UsageError("--base-only and --adapter exclude each other")
    run = load_config(config, overrides)
    from dataflex.evaluation.comparison import compare, default_trained

    chosen = [] if base_only else list(adapters) or default_trained(run)
    found = compare(run, chosen, resamples=resamples)
    if answers is not None:
        found.write_answers(answers)
    if as_json:
        print_json(found.to_json())
    else:
        echo("\n".join(found.lines()))
