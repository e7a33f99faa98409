"""A run that is killed with SIGKILL while it writes its n-th shard of features or scores; a script for a process."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import dataflex.gradients.store
from helpers.runs import tiny_nice, tiny_trainer


def main(output_dir: str, writes: int, scoring: str = "projected") -> None:
    """Run a tiny training; the process dies at its ``writes``-th write to a store of features or scores."""
    real = dataflex.gradients.store.FeatureStore.write
    left = writes

    def write(self, start, features):
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, start, features)

    dataflex.gradients.store.FeatureStore.write = write
    selector = tiny_nice(scoring=scoring, feature_batch_tokens=128)
    tiny_trainer(Path(output_dir), selector=selector, resume_from_checkpoint=True).train()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
