"""One process works for three times as long as a collective may take; a script for torchrun."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from dataflex.utils.distributed import Ranks

TIMEOUT = 2.0
"""Seconds after which gloo gives up."""


def main(output_dir: str) -> None:
    """Let either process wait for the other, in each way in which they wait."""
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    ranks = Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())

    def work() -> int:
        time.sleep(3 * TIMEOUT)
        return ranks.index

    found = [
        ranks.on_main(work),
        ranks.together(work if ranks.index == 1 else lambda: ranks.index),
        int(ranks.add_up(torch.tensor([ranks.index]))),
    ]
    torch.distributed.destroy_process_group()  # a thread of gloo that lives on aborts the process at its end
    (Path(output_dir) / f"{ranks.index}.txt").write_text(str(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
