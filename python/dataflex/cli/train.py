"""``dataflex train``."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import click

from dataflex.cli.paths import UserPath
from dataflex.cli.run_file import load_run, root_options, run_file
from dataflex.utils.console import echo

logger = logging.getLogger("dataflex")


@click.command()
@run_file
@click.option(
    "--replay-rewards",
    metavar="OUTPUT_DIR",
    type=UserPath(exists=True, file_okay=False),
    help="Use the answers and rewards of that run; nothing is generated and no judge is asked.",
)
@click.option("--dry-run", is_flag=True, help="Say the steps, and the forward passes that mixtures or weights add.")
def train(config: str, overrides: tuple[str, ...], replay_rewards: str | None, dry_run: bool) -> None:
    """Fine-tune as the YAML file CONFIG says.

    KEY=VALUE replaces a key of the file: learning_rate=2e-4, component_params.mc_samples=8.

    Several processes: `torchrun -m dataflex train ...`, `accelerate launch -m dataflex train ...`, or
    FORCE_TORCHRUN=1, which starts torchrun with NPROC_PER_NODE (default: one a GPU), NNODES, NODE_RANK, MASTER_ADDR
    and MASTER_PORT.
    """
    from dataflex.utils.launch import is_main_process, torchrun_command

    if replay_rewards is not None:
        overrides = (*overrides, f"component_params.replay_rewards={json.dumps(replay_rewards)}")
    run = load_run(config, overrides)
    if dry_run:
        from dataflex.doctor.plan import plan_lines

        echo("\n".join(plan_lines(run)))
        return
    command = torchrun_command([*root_options(), "train", config, *overrides])
    if command is not None:
        os.execv(command[0], command)
    if not is_main_process():
        logger.setLevel(logging.WARNING)
    from dataflex.training.run import train_from_config

    train_from_config(run)
    if is_main_process() and logger.isEnabledFor(logging.INFO):  # with --quiet, report.html has it
        from dataflex.report.run import print_report

        print_report(Path(run.output_dir), page=False)
