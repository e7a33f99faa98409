"""``dataflex near``."""

from __future__ import annotations

import logging
from pathlib import Path

import click

logger = logging.getLogger("dataflex")


class _NearCommand(click.Command):
    """Has a flag for every key of the configuration, read from it when the command is used or asked for help."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from dataflex.cli.near_flags import described_keys

        flags = [
            click.Option([f"--{name.replace('_', '-')}", name], metavar="VALUE", help=description)
            for name, description in described_keys().items()
        ]
        return [*self.params, *flags, *super().get_params(ctx)[len(self.params) :]]


@click.command(cls=_NearCommand)
@click.argument("arguments", metavar="[CONFIG] [KEY=VALUE]...", nargs=-1)
def near(arguments: tuple[str, ...], **flags: str | None) -> None:
    """Find the nearest training rows of each target row, for component_name: near.

    The keys come from the YAML file CONFIG, from KEY=VALUE arguments or from flags; later ones win. Required are
    candidate_path, query_path and embed_model.
    """
    from dataflex.config import load_near_config
    from dataflex.retrieval.index import NearIndex

    file = next(iter(arguments), "")
    named = bool(file) and ("=" not in file or Path(file).is_file())
    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    config = load_near_config(file if named else {}, [*arguments[named:], *given])
    for warning in config.warnings():
        logger.warning("%s", warning)
    NearIndex.from_config(config).build()
