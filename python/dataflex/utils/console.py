"""Tables and JSON on standard output, for commands."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import click
from rich.cells import cell_len

from dataflex.utils.shown import shown

logger = logging.getLogger(__name__)


def echo(text: str = "", *, err: bool = False) -> None:
    """Print text whose own characters cannot act on the terminal; for styled text, style what is ``shown`` already."""
    click.echo(shown(text, lines=True), err=err)


def say(text: str) -> None:
    """Print what a command has done; with ``--quiet`` its files alone say so."""
    if logger.isEnabledFor(logging.INFO):
        echo(text)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns that are as wide as their widest cell."""
    table = [[shown(cell) for cell in row] for row in [head, *rows]]
    widths = [max(cell_len(row[column]) for row in table) for column in range(len(head))]
    for row in table:
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def print_json(value: Any) -> None:
    """Print JSON, indented; other scripts stay as they are written, characters that act are escaped."""
    click.echo(shown(json.dumps(value, indent=2, ensure_ascii=False), target="json"))
