"""Tables and JSON on standard output, for commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns that are as wide as their widest cell."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_json(value: Any) -> None:
    """Print JSON, indented, other scripts as they are written."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
