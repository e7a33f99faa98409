"""A run that is killed with SIGKILL while it writes its n-th shard of features; a script for a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import dataflex.gradients.store
from helpers.runs import tiny_trainer


def main(output_dir: str, writes: int) -> None:
    """Run a tiny training; the process dies at its ``writes``-th write to a feature store."""
    real = dataflex.gradients.store.FeatureStore.write
    left = writes

    def write(self, start, features):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, start, features)

    dataflex.gradients.store.FeatureStore.write = write
    tiny_trainer(Path(output_dir), resume_from_checkpoint=True).train()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
