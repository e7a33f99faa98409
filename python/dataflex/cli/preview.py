"""``dataflex preview``."""

from __future__ import annotations

import os
import sys

import click

from dataflex.cli.run_file import run_file


@click.command()
@run_file
@click.option("--samples", default=3, show_default=True, type=click.IntRange(min=0), help="Rows to print.")
@click.option("--rows", default=1000, show_default=True, type=click.IntRange(min=1), help="Rows to count over.")
@click.option("--eval", "evaluation", is_flag=True, help="The evaluation set in place of the training set.")
def preview(config: str, overrides: tuple[str, ...], samples: int, rows: int, evaluation: bool) -> None:
    """Print rows of the run in CONFIG as the model will see them.

    What is learnt is in colour or, without a terminal or with NO_COLOR set, between [[ and ]]. Counts of cut rows and
    of rows without a label come first.
    """
    from dataflex.config import load_config
    from dataflex.doctor.preview import preview as lines

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    run = load_config(config, overrides)
    for line in lines(run, samples=samples, rows=rows, evaluation=evaluation, colour=colour):
        click.echo(line)
