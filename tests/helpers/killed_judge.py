"""Scores numbers with a judge at a URL, one answer each; a script for a process of its own that may be killed."""

from __future__ import annotations

import json
import sys

from helpers.api_judge import backend, requests


def main(url: str, cache: str, count: int) -> None:
    """Score ``count`` different answers and print the rewards."""
    judge = backend(url, cache_path=cache, max_concurrency=3)
    print(json.dumps(judge.score(requests(*answers(count)))), flush=True)


def answers(count: int) -> list[str]:
    """Different numbers in [0, 1]; the scripted judge gives each its own value."""
    return [f"{number / count:.4f}" for number in range(count)]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
