"""The command line: ``dataflex``, ``dataflex-cli`` and ``python -m dataflex``.

Heavy packages are imported inside the commands that need them, plugins when a command of theirs or the list of all
commands is asked for.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataflex.cli.doctor import doctor, preview
from dataflex.cli.evaluate import evaluate
from dataflex.cli.plugins import plugins
from dataflex.errors import ConfigError, DataflexError, PluginError
from dataflex.plugins.installed import may_have_plugins
from dataflex.utils.console import print_json

if TYPE_CHECKING:
    from dataflex.config import RunConfig


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
                click.echo(traceback.format_exc(), err=True, nl=False)
            _print_error(error)
            ctx.exit(1)

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
    """Writes one line a record; what is not information carries its level."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        click.echo(f"{level}{self.format(record)}", err=True)


@contextmanager
def _logging(level: int) -> Iterator[None]:
    """Log to stderr while a command runs."""
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
        text = "\n  ".join([f"{len(error.problems)} problems", *error.problems])
    else:
        text = error.message
    click.echo(f"{click.style('error:', fg='red')} {text}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


@click.group(cls=_Cli, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--traceback", is_flag=True, help="Show where an error comes from.")
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
@click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
@click.pass_context
def cli(ctx: click.Context, traceback: bool, verbose: bool, quiet: bool) -> None:
    """Choose the data that a language model is fine-tuned on, while it is being fine-tuned."""
    del traceback  # read by the group when a command fails
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet exclude each other")
    ctx.with_resource(_logging(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO))


cli.add_command(evaluate)


@cli.command()
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option(
    "--replay-rewards",
    metavar="OUTPUT_DIR",
    type=click.Path(exists=True, file_okay=False),
    help="Use the answers and rewards of that run; nothing is generated and no judge is asked.",
)
def train(config: str, overrides: tuple[str, ...], replay_rewards: str | None) -> None:
    """Fine-tune as the YAML file CONFIG says.

    KEY=VALUE replaces a key of the file: learning_rate=2e-4, component_params.mc_samples=8.

    Several processes: `torchrun -m dataflex train ...`, `accelerate launch -m dataflex train ...`, or
    FORCE_TORCHRUN=1, which starts torchrun with NPROC_PER_NODE (default: one a GPU), NNODES, NODE_RANK, MASTER_ADDR
    and MASTER_PORT.
    """
    from dataflex.utils.launch import is_main_process, torchrun_command

    if replay_rewards is not None:
        overrides = (*overrides, f"component_params.replay_rewards={json.dumps(replay_rewards)}")
    run = _load(config, overrides)
    command = torchrun_command(["train", config, *overrides])
    if command is not None:
        os.execv(command[0], command)
    if not is_main_process():
        logger.setLevel(logging.WARNING)
    from dataflex.training.run import train_from_config

    train_from_config(run)
    if is_main_process():
        from dataflex.report.run import print_report

        print_report(Path(run.output_dir))


@cli.command(name="export")
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
def export_model(config: str, overrides: tuple[str, ...]) -> None:
    """Merge adapters into their base model as the YAML file CONFIG says.

    Keys: model_name_or_path, adapter_name_or_path, template, export_dir, export_size (GB), export_device,
    trust_remote_code.
    """
    from dataflex.config import load_export_config

    run = load_export_config(config, overrides)
    from dataflex.models.export import export

    done = export(run)
    difference = done["largest_logit_difference"]
    checked = "" if difference is None else f"; largest difference of a logit from base and adapter: {difference:.2g}"
    click.echo(f"{done['export_dir']}: {done['dtype']}, {len(done['files'])} files{checked}")


def _count(ctx: click.Context, param: click.Parameter, value: str) -> float:
    """``5%`` and ``0.05`` are a share (float), ``500`` is a number (int)."""
    del ctx, param
    try:
        if value.endswith("%"):
            return float(value[:-1]) / 100
        return int(value) if value.isdigit() else float(value)
    except ValueError as error:
        raise click.BadParameter(f"expected a number (500) or a share (5%), got {value!r}") from error


@cli.command()
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
@click.option("-n", "--num", required=True, callback=_count, help="Rows to select: a number (500) or a share (5%).")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The subset: a .jsonl file.")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A checkpoint-STEP folder: its weights and optimizer are used.",
)
@click.option("--dry-run", is_flag=True, help="Time a few batches and predict time, memory and disk.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier selection.")
def select(
    config: str,
    overrides: tuple[str, ...],
    num: float,
    output: Path | None,
    checkpoint: Path | None,
    dry_run: bool,
    overwrite: bool,
) -> None:
    """Select rows once, without training, as the YAML file CONFIG says.

    CONFIG is the file of a training run: its model, data and selector are used. The subset holds the chosen rows as
    they stand in their source, best first, each with an object `_dataflex`; beside it come the scores of all rows
    (.scores.parquet) and a card (.card.md). KEY=VALUE replaces a key of the file:
    component_params.gradient_type=sgd.

    The processes of torchrun or accelerate launch share the work; torchrun takes --num for an option of its own, so
    write -n there: torchrun --nproc_per_node 2 -m dataflex select run.yaml -n 5% -o subset.jsonl
    """
    if output is None and not dry_run:
        raise click.UsageError("-o / --output is needed unless --dry-run is given")
    run = _load(config, overrides)
    from dataflex.utils.launch import is_main_process

    if not is_main_process():
        logger.setLevel(logging.WARNING)
    from dataflex.offline.run import dry_run_from_config, select_from_config

    if dry_run:
        import tempfile

        with tempfile.TemporaryDirectory(dir=output.parent if output and output.parent.exists() else None) as folder:
            found = dry_run_from_config(run, Path(folder), num_samples=num, checkpoint=checkpoint)
        click.echo("\n".join(found.lines()))
    elif output is not None:
        chosen = select_from_config(run, output, num_samples=num, checkpoint=checkpoint, overwrite=overwrite)
        if is_main_process():
            click.echo(f"{len(chosen.indices):,} of {len(chosen.samples):,} rows are in {output}")


class _NearCommand(click.Command):
    """Has a flag for every key of the configuration, read from it when the command is used or asked for help."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from dataflex.cli.near_flags import described_keys

        flags = [
            click.Option([f"--{name.replace('_', '-')}", name], metavar="VALUE", help=description)
            for name, description in described_keys().items()
        ]
        return [*self.params, *flags, *super().get_params(ctx)[len(self.params) :]]


@cli.command(cls=_NearCommand)
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


@cli.command()
@click.argument("output_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
def report(output_dir: Path) -> None:
    """Print what a run in OUTPUT_DIR selected."""
    from dataflex.report.run import print_report

    print_report(output_dir)


cli.add_command(plugins)


@cli.group(name="config")
def config_group() -> None:
    """Check, show and describe configurations."""


@config_group.command()
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
def validate(config: str, overrides: tuple[str, ...]) -> None:
    """Report every problem of the YAML file CONFIG, with its line; parameters of the selector included."""
    run = _load(config, overrides)
    for warning in run.warnings():
        logger.warning("%s", warning)
    click.echo(f"{config} is valid")


@config_group.command()
@click.argument("config")
@click.argument("overrides", metavar="[KEY=VALUE]...", nargs=-1)
def show(config: str, overrides: tuple[str, ...]) -> None:
    """Print the YAML file CONFIG resolved: defaults, paths and parameters of the selector written out."""
    from dataflex.config import load_config

    click.echo(load_config(config, overrides).to_yaml(), nl=False)


@config_group.command()
def schema() -> None:
    """Print the JSON schema of a run's YAML file, for editors that complete and check it."""
    from dataflex.config import config_schema

    print_json(config_schema())


@cli.command()
def version() -> None:
    """Print the versions of dataflex and of the packages that it stands on."""
    from dataflex.config.provenance import versions

    for package, number in versions().items():
        click.echo(f"{package} {number}")


for command in (doctor, preview):
    cli.add_command(command)


def _load(config: str, overrides: tuple[str, ...]) -> RunConfig:
    from dataflex.config import load_config

    return load_config(config, overrides, check_component=True)


def main() -> None:
    """Run the command line; exits with 1 on an error of dataflex and with 2 on wrong usage."""
    # SIGTERM unwinds what runs, so that the engines and servers of judges stop too. A launcher's processes end at once:
    # each may be waiting for one that is gone.
    if "LOCAL_RANK" not in os.environ:
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    cli(prog_name="dataflex")
