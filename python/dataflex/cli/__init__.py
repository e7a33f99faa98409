"""The command line, a file a command: ``dataflex``, ``dataflex-cli`` and ``python -m dataflex``.

Words of the shell come in, calls of the parts below and lines of text go out.
May import everything; heavy packages only inside the commands that need them.
"""

from __future__ import annotations

from dataflex.cli.app import cli, main

__all__ = ["cli", "main"]
