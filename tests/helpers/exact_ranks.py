"""Exact scores of a tiny round, by processes that see no folder in common; a script for torchrun."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from dataflex.selectors.less import LessSelector
from dataflex.testing import tiny_context, tiny_dataset
from dataflex.utils.distributed import Ranks


def main(output_dir: str) -> None:
    """Write the scores that this rank has found."""
    torch.set_num_threads(1)
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        torch.distributed.init_process_group("gloo")
    folder = Path(output_dir) / f"{rank}-of-{count}"
    context = tiny_context(
        folder, train_dataset=tiny_dataset(23, seed=3), eval_dataset=tiny_dataset(7, seed=100), ranks=Ranks(rank, count)
    )
    found = LessSelector(scoring="exact", save_interval=4, feature_batch_tokens=140).select(context)
    facts = {
        "scores": found.scores.tolist() if found.scores is not None else None,
        "indices": found.indices.tolist(),
        "reliability": found.report["reliability"],
        "shards": len(list(folder.rglob("scores-*.safetensors"))),
    }
    if count > 1:
        torch.distributed.destroy_process_group()
    (folder / "found.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
