"""What most commands take: the YAML file of a run, and keys that replace its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from dataflex.config import RunConfig

Function = TypeVar("Function", bound=Callable[..., Any])


def run_file(function: Function) -> Function:
    """Give a command the arguments CONFIG and [KEY=VALUE]..."""
    overrides = click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
    return click.argument("config")(overrides(function))


def root_options() -> list[str]:
    """The options before the command (``--verbose``), for processes that carry it on."""
    given = click.get_current_context().find_root().params
    return [f"--{name}" for name in ("traceback", "verbose", "quiet") if given.get(name)]


def load_run(config: str, overrides: tuple[str, ...]) -> RunConfig:
    """Load the file with its overrides, the parameters of its component checked."""
    from dataflex.config import load_config

    return load_config(config, overrides, check_component=True)
