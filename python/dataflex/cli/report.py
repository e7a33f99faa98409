"""``dataflex report``."""

from __future__ import annotations

from pathlib import Path

import click

from dataflex.cli.paths import UserPath


@click.command()
@click.argument("output_dir", type=UserPath(exists=True, file_okay=False, path_type=Path))
def report(output_dir: Path) -> None:
    """Print what a run in OUTPUT_DIR selected."""
    from dataflex.report.run import print_report

    print_report(output_dir)
