"""What stops a long command says how it goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dataflex.errors import DataflexError
from dataflex.visible import visible

logger = logging.getLogger(__name__)


@contextmanager
def going_on(way: Callable[[], str | None]) -> Iterator[None]:
    """Add the way to go on to errors of dataflex, and say it when the block is interrupted (Ctrl-C, SIGTERM).

    Args:
        way: How to go on, in a few words; asked when the block is stopped. None: there is nothing to go on with.
    """
    try:
        yield
    except DataflexError as error:
        if text := way():
            error.hint = visible("; ".join(part for part in (error.hint, text) if part), lines=True)
        raise
    except (KeyboardInterrupt, SystemExit):
        if text := way():
            logger.warning("stopped; %s", text)
        raise
