"""``dataflex config``: validate, show, schema."""

from __future__ import annotations

import logging

import click

from dataflex.cli.run_file import load_run, run_file
from dataflex.utils.console import echo, print_json

logger = logging.getLogger("dataflex")


@click.group(name="config")
def config_group() -> None:
    """Check, show and describe configurations."""


@config_group.command()
@run_file
def validate(config: str, overrides: tuple[str, ...]) -> None:
    """Report every problem of the YAML file CONFIG, with its line; parameters of the selector included."""
    run = load_run(config, overrides)
    for warning in run.warnings():
        logger.warning("%s", warning)
    echo(f"{config} is valid")


@config_group.command()
@run_file
def show(config: str, overrides: tuple[str, ...]) -> None:
    """Print the YAML file CONFIG resolved: defaults, paths and parameters of the selector written out."""
    from dataflex.config import load_config

    click.echo(load_config(config, overrides).to_yaml(), nl=False)


@config_group.command()
def schema() -> None:
    """Print the JSON schema of a run's YAML file, for editors that complete and check it."""
    from dataflex.config import config_schema

    print_json(config_schema())
