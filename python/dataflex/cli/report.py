"""``dataflex report``."""

from __future__ import annotations

from pathlib import Path

import click

from dataflex.cli.paths import UserPath
from dataflex.utils.console import print_json


@click.command()
@click.argument("output", type=UserPath(exists=True, path_type=Path))
@click.option("--open", "opened", is_flag=True, help="Show the page in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print summary and tables as JSON instead.")
def report(output: Path, opened: bool, as_json: bool) -> None:
    """Say what was selected and why, whether to trust it, and what it cost.

    OUTPUT is the folder of a run, which may still go on, or a subset of `dataflex select`. The tables are printed, and
    the page with the pictures is written: report.html in the folder, or subset.report.html beside the subset.
    """
    from dataflex.report.api import Report
    from dataflex.report.run import print_report

    if as_json:
        made = Report(output)
        made.write()
        page = made.read.page
        print_json(made.to_json())
    else:
        page = print_report(output)
    if opened:
        click.launch(str(page.absolute()))
