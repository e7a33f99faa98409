"""Paths on the command line."""

from __future__ import annotations

from typing import Any

import click


class UserPath(click.Path):
    """A path that may start with ``~``, which shells leave alone in ``--output=~/rows.jsonl``."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See :meth:`click.ParamType.convert`."""
        from dataflex.utils.home import expand_home

        try:
            value = expand_home(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)
