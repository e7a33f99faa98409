"""``python -m dataflex``: the command line."""

from __future__ import annotations

from dataflex.cli import main

if __name__ == "__main__":
    main()
