"""Gradient passes of a sharded model in several processes, watched from inside; a script for them."""

from __future__ import annotations

import copy
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dataflex.data.collate import collate
from dataflex.gradients.hooks import BatchedGradients
from dataflex.gradients.in_step import CommonPasses, ShardedRanks
from dataflex.gradients.samples import SampleFeatures
from dataflex.models.losses import summed_loss
from dataflex.models.sharding import shard
from dataflex.projection.projector import Projector
from dataflex.testing import tiny_context, tiny_dataset, tiny_lora, tiny_model
from dataflex.utils.distributed import Ranks

LAYERS, WIDTH = 12, 512
RANK = 48
"""Of LoRA: more than a row has tokens, so that no product has the shape of a weight by chance."""
RUN = BatchedGradients.run


class Watch(TorchDispatchMode):
    """Counts collectives, and products of matrices that have the shape of a parameter: gradients of weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.collectives: Counter[str] = Counter()
        self.weight_gradients = 0
        shapes = [tuple(parameter.shape) for parameter in model.parameters() if parameter.ndim == 2]
        self._shapes = {*shapes, *(shape[::-1] for shape in shapes)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at it."""
        found = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self.collectives[func.overloadpacket.__name__] += 1
        if func.overloadpacket.__name__ in ("mm", "addmm"):
            self.weight_gradients += sum(
                tuple(value.shape) in self._shapes for value in tree_leaves(found) if isinstance(value, Tensor)
            )
        return found


def growth(work: Any) -> int:
    """Bytes by which the process's memory was larger at its peak while ``work`` ran."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main(folder: str) -> None:
    """Features of whole and sharded models, the same rows; what was seen goes to ``FOLDER/RANK.json``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    ranks = Ranks(dist.get_rank(), dist.get_world_size())
    model = tiny_lora(
        tiny_model(hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=8),
        r=RANK,
    )
    own = Path(folder) / f"whole-{ranks.index}"
    context = replace(tiny_context(own), model=model, train_dataset=tiny_dataset(5, seed=7), ranks=Ranks())

    def features(where: Any, place: Path, tokens: int) -> SampleFeatures:
        settings = {"gradient_type": "sgd", "adam_variant": "adamw", "batch_tokens": tokens}
        return SampleFeatures(where, context.train_dataset, Projector(256, seed=1), **settings)

    expected = features(context, own, 40).fill(own / "f", save_rows=5, description="gradients").load()
    whole_bytes = sum(parameter.numel() * 4 for parameter in model.parameters())
    sharded = shard(copy.deepcopy(model), init_device_mesh("cpu", (ranks.count,)))
    del model
    context = replace(
        context,
        model=sharded,
        ranks=ShardedRanks(ranks.index, ranks.count, ranks.device, passes=CommonPasses(sharded, ranks)),
    )
    watch = Watch(sharded)
    calls = []

    def watched(self: BatchedGradients, rows: int, *args: Any, **options: Any) -> frozenset[str]:
        calls.append(rows)
        with watch:
            return RUN(self, rows, *args, **options)

    # One row a batch: 5 batches, of which one process computes 3 and the other 2, and one that is not kept.
    made = features(context, Path(folder) / "shared", 40)
    made.prepare()
    BatchedGradients.run = watched  # type: ignore[method-assign]
    stores = []
    peak = growth(lambda: stores.append(made.fill(Path(folder) / "shared", save_rows=5, description="gradients")))
    BatchedGradients.run = RUN  # type: ignore[method-assign]
    found = stores[0].load()
    gradients = [name for name, parameter in sharded.named_parameters() if parameter.grad is not None]
    control = Watch(sharded)
    batch = collate([context.train_dataset[ranks.index]], 2)
    with control:
        summed_loss(sharded, batch)[0].backward()
    seen = {
        "difference": float((found - expected).abs().max() / expected.abs().max()),
        "collectives": dict(watch.collectives),
        "weight_gradients": watch.weight_gradients,
        "calls": calls,
        "with_gradient": gradients,
        "control": {"collectives": dict(control.collectives), "weight_gradients": control.weight_gradients},
        "whole_bytes": whole_bytes,
        "growth": peak,
    }
    (Path(folder) / f"{ranks.index}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
