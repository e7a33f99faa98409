"""The command line: ``dataflex``, ``dataflex-cli`` and ``python -m dataflex``.

Heavy packages are imported inside the commands that need them, plugins when a command of theirs or the list of all
commands is asked for.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from dataflex.cli.config import config_group
from dataflex.cli.doctor import doctor
from dataflex.cli.evaluate import evaluate
from dataflex.cli.explain import diff, explain
from dataflex.cli.export import export_model
from dataflex.cli.near import near
from dataflex.cli.plugins import plugins
from dataflex.cli.preview import preview
from dataflex.cli.report import report
from dataflex.cli.select import select
from dataflex.cli.train import train
from dataflex.cli.version import version
from dataflex.errors import ConfigError, DataflexError, PluginError
from dataflex.plugins.installed import may_have_plugins
from dataflex.utils.console import echo
from dataflex.utils.progress import bars
from dataflex.utils.shown import one_record
from dataflex.version import __version__

logger = logging.getLogger("dataflex")


class _PluginCommands(click.Group):
    """Takes the commands of plugins; a name that is taken is an error of the plugin that comes second."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        name = name or cmd.name
        if name in cli.commands or name in self.commands:
            raise PluginError(f"the command {name!r} exists already")
        super().add_command(cmd, name)


class _Cli(click.Group):
    """Prints the errors of dataflex without a traceback and finds the commands of plugins."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *sorted(self._plugin_commands(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self._plugin_commands(ctx).get(cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DataflexError as error:
            if ctx.params["traceback"]:
                echo(traceback.format_exc().rstrip("\n"), err=True)
            _print_error(error)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(128 + signal.SIGINT)

    def main(self, *args: Any, **settings: Any) -> Any:
        """Run a command; wrong usage is printed as every other error is. Arguments are those of ``click.Command``."""
        run: Callable[..., Any] = super().main
        if not settings.pop("standalone_mode", True):
            return run(*args, standalone_mode=False, **settings)
        try:
            code = run(*args, standalone_mode=False, **settings)
        except click.ClickException as error:
            _print_problem(error.format_message(), _usage_hint(error))
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(128 + signal.SIGINT)
        sys.exit(code if isinstance(code, int) else 0)

    def _plugin_commands(self, ctx: click.Context) -> Mapping[str, click.Command]:
        found: Mapping[str, click.Command] | None = ctx.meta.get(__name__)
        if found is None and not may_have_plugins():
            found = ctx.meta[__name__] = {}
        if found is None:
            from dataflex.plugins.registry import registry

            group = _PluginCommands()
            with _logging(logging.WARNING):
                registry().call("register_commands", cli=group)
            found = ctx.meta[__name__] = group.commands
        return found


class _StderrHandler(logging.Handler):
    """Writes one record after another; what is not information carries its level, further lines are indented."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        with _above_bars():
            echo(one_record(f"{level}{self.format(record)}"), err=True)


@contextmanager
def _above_bars() -> Iterator[None]:
    """What is printed in the block stands above the bars that are being drawn, not in the midst of one."""
    if "tqdm" not in sys.modules:
        yield
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=sys.stderr):
        yield


@contextmanager
def _logging(level: int) -> Iterator[None]:
    """Log to stderr while a command runs."""
    # peft imports it where it is there, and it then recommends a package of its own.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    handler, before = _StderrHandler(), (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _print_error(error: DataflexError) -> None:
    if isinstance(error, ConfigError) and len(error.problems) > 1:
        text = "\n".join([f"{len(error.problems)} problems", *error.problems])
    else:
        text = error.message
    _print_problem(text, error.hint)


def _usage_hint(error: click.ClickException) -> str | None:
    if not isinstance(error, click.UsageError):
        return None
    path = error.ctx.command_path if error.ctx is not None else "dataflex"
    return f"`{path} --help` shows what there is"


def _print_problem(text: str, hint: str | None) -> None:
    colour = None if not os.environ.get("NO_COLOR") else False
    click.echo(f"{click.style('error:', fg='red')} {one_record(text)}", err=True, color=colour)
    if hint:
        click.echo(f"hint: {one_record(hint)}", err=True)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dataflex", message="%(prog)s %(version)s")
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
@click.option("-v", "--verbose", is_flag=True, help="Log details: every step, checkpoint and phase.")
@click.option("-q", "--quiet", is_flag=True, help="Print warnings and errors only, no bars.")
@click.pass_context
def cli(ctx: click.Context, traceback: bool, verbose: bool, quiet: bool) -> None:
    """Choose the data that a language model is fine-tuned on, while it is being fine-tuned."""
    del traceback  # read by the group when a command fails
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other")
    ctx.with_resource(bars(wanted=not quiet))
    ctx.with_resource(_logging(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO))


_COMMANDS = (
    *(train, export_model, select, near, report, explain, diff, evaluate),
    *(plugins, config_group, version, doctor, preview),
)
for command in _COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command line; exits with 1 on an error, 2 on wrong usage, 130 on Ctrl-C and 143 on SIGTERM."""
    # SIGTERM unwinds what runs, so that the engines and servers of judges stop too. A launcher's processes end at once:
    # each may be waiting for one that is gone.
    if "LOCAL_RANK" not in os.environ:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    cli(prog_name="dataflex")
