"""``dataflex select``."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from dataflex.cli.paths import UserPath
from dataflex.cli.run_file import load_run, run_file
from dataflex.utils.console import echo, say

logger = logging.getLogger("dataflex")


def _count(ctx: click.Context, param: click.Parameter, value: str) -> float:
    from dataflex.config.values import count_or_share

    del ctx, param
    try:
        return count_or_share(value)
    except ValueError as error:
        raise click.BadParameter(f"expected a number (500) or a share (5%), got {value!r}") from error


@click.command()
@run_file
@click.option("-n", "--num", required=True, callback=_count, help="Rows to select: a number (500) or a share (5%).")
@click.option("-o", "--output", type=UserPath(dir_okay=False, path_type=Path), help="The subset: a .jsonl file.")
@click.option(
    "--checkpoint",
    type=UserPath(exists=True, file_okay=False, path_type=Path),
    help="A checkpoint-STEP folder, of dataflex, transformers or TRL: its weights and optimizer are used.",
)
@click.option("--dry-run", is_flag=True, help="Time a few batches and predict time, memory and disk.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier selection.")
def select(
    config: str,
    overrides: tuple[str, ...],
    num: float,
    output: Path | None,
    checkpoint: Path | None,
    dry_run: bool,
    overwrite: bool,
) -> None:
    """Select rows once, without training, as the YAML file CONFIG says.

    CONFIG is the file of a training run: its model, data and selector are used. The subset holds the chosen rows as
    they stand in their source, best first, each with an object `_dataflex`; beside it come the scores of all rows
    (.scores.parquet) and a card (.card.md). KEY=VALUE replaces a key of the file:
    component_params.gradient_type=sgd.

    The processes of torchrun or accelerate launch share the work; torchrun takes --num for an option of its own, so
    write -n there: torchrun --nproc_per_node 2 -m dataflex select run.yaml -n 5% -o subset.jsonl
    """
    if output is None and not dry_run:
        raise click.UsageError("-o / --output is needed unless --dry-run is given")
    run = load_run(config, overrides)
    from dataflex.utils.launch import is_main_process

    if not is_main_process():
        logger.setLevel(logging.WARNING)
    from dataflex.offline.run import dry_run_from_config, select_from_config

    if dry_run:
        import tempfile

        with tempfile.TemporaryDirectory(dir=output.parent if output and output.parent.exists() else None) as folder:
            found = dry_run_from_config(
                run, Path(folder), num_samples=num, checkpoint=checkpoint, output=output, overwrite=overwrite
            )
        echo("\n".join(found.lines()))
    elif output is not None:
        chosen = select_from_config(run, output, num_samples=num, checkpoint=checkpoint, overwrite=overwrite)
        if is_main_process():
            say(f"{len(chosen.indices):,} of {len(chosen.samples):,} rows are in {output}")
