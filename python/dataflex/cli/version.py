"""``dataflex version``."""

from __future__ import annotations

import click


@click.command()
def version() -> None:
    """Print the versions of dataflex and of the packages that it stands on."""
    from dataflex.config.provenance import versions

    for package, number in versions().items():
        click.echo(f"{package} {number}")
