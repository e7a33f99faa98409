"""``dataflex explain`` and ``dataflex diff``."""

from __future__ import annotations

from pathlib import Path

import click

from dataflex.cli.paths import UserPath
from dataflex.utils.console import echo, print_json


@click.command()
@click.argument("output", type=UserPath(exists=True, path_type=Path))
@click.option("--row", "rows", multiple=True, help="Id of a row, or its position; may be given several times.")
@click.option("--top", type=click.IntRange(0), default=0, help="So many of the best of the chosen rows.")
@click.option("--lowest", type=click.IntRange(0), default=0, help="So many rows of the lowest scores.")
@click.option("--step", type=int, help="The selection after so many steps (default: the last).")
@click.option("--files-only", is_flag=True, help="Say what the files tell; do not load the model for the targets.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(
    output: Path, rows: tuple[str, ...], top: int, lowest: int, step: int | None, files_only: bool, as_json: bool
) -> None:
    """Say why rows were chosen or not: score and rank, the targets that pull them, the rows that are like them.

    OUTPUT is the folder of a run. The targets take one pass over the evaluation set with the model as it was at the
    selection; nothing is drawn, and no judge is asked.
    """
    if not rows and not top and not lowest:
        raise click.UsageError("name rows by --row ID, --top N or --lowest N")
    from dataflex.offline.explain import explain as explained
    from dataflex.report.run import print_sheet, terminal

    stories = explained(output, rows, top=top, lowest=lowest, step=step, targets=not files_only)
    if as_json:
        print_json([story.to_json() for story in stories])
        return
    console = terminal()
    for story in stories:
        echo(f"row {story.id}")
        for name, text in story.texts.items():
            echo(f"  {name}: {text}")
        for sheet in story.sheets.values():
            print_sheet(console, sheet)
        for reason in story.unknown:
            echo(reason)


@click.command()
@click.argument("one", type=UserPath(exists=True, path_type=Path))
@click.argument("other", type=UserPath(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(one: Path, other: Path, as_json: bool) -> None:
    """Compare what two runs, or two subsets of `dataflex select`, chose from the same data.

    Rows in common, rank correlation of the scores, and the rows that only one of them chose.
    """
    from dataflex.report.diff import differences
    from dataflex.report.read import read_report
    from dataflex.report.run import print_sheet, terminal

    sheets = differences(read_report(one), read_report(other))
    if as_json:
        print_json({sheet.key: sheet.to_json() for sheet in sheets})
        return
    console = terminal()
    for sheet in sheets:
        print_sheet(console, sheet)
