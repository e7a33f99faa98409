"""``dataflex doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from dataflex.utils.console import echo, print_json
from dataflex.utils.shown import shown

if TYPE_CHECKING:
    from dataflex.doctor.check import Check

_COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.argument("config", required=False)
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, config: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check this installation and, if CONFIG is given, the run that it describes.

    The installation: versions, native kernels against their references, threads, devices, plugins. The run:
    configuration, output folder, model, template, rows and labels, selector and reward, memory and disk; up to 1,000
    rows are tokenised, and no weights are loaded. Exits with 1 if a check fails.
    """
    from dataflex.doctor.installation import diagnose

    checks = diagnose()
    if config is not None:
        from dataflex.doctor.run import diagnose_file

        checks += diagnose_file(config, overrides)
    if as_json:
        print_json([check.to_json() for check in checks])
    else:
        _print(checks)
    ctx.exit(1 if any(check.status == "fail" for check in checks) else 0)


def _print(checks: Sequence[Check]) -> None:
    """A line a check, then what to do."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        status = click.style(check.status.upper(), fg=_COLOURS[check.status])
        name, detail = shown(check.name.ljust(width)), shown(check.detail, lines=True)
        first, *more = detail.split("\n")
        click.echo("\n".join([f"{status}  {name}  {first}", *(f"      {line}" for line in more)]))
    fixes = [check for check in checks if check.fix and check.status != "pass"]
    if fixes:
        echo("\nwhat to do")
    for check in fixes:
        echo(f"  {check.name}: {check.fix}")
