"""``dataflex export``."""

from __future__ import annotations

import logging

import click

from dataflex.cli.run_file import run_file
from dataflex.utils.console import say

logger = logging.getLogger("dataflex")


@click.command(name="export")
@run_file
def export_model(config: str, overrides: tuple[str, ...]) -> None:
    """Merge adapters into their base model as the YAML file CONFIG says.

    Keys: model_name_or_path, adapter_name_or_path, template, export_dir, export_size (GB), export_device,
    trust_remote_code.
    """
    from dataflex.config import load_export_config

    run = load_export_config(config, overrides)
    for warning in run.warnings():
        logger.warning("%s", warning)
    from dataflex.models.export import export

    done = export(run)
    difference = done["largest_logit_difference"]
    checked = "" if difference is None else f"; largest difference of a logit from base and adapter: {difference:.2g}"
    say(f"{done['export_dir']}: {done['dtype']}, {len(done['files'])} files{checked}")
