"""Settings of a foreign trainer under which a selection of rows would not be what is trained on: refused, with why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dataflex.errors import ConfigError

SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA")
"""Kinds of distribution that share parameters or gradients, where a single row has no gradient of its own."""


def check_arguments(args: Any) -> None:
    """Raise ConfigError for transformers' (or TRL's) arguments that cannot be followed; all of them at once."""
    problems = [*_order_problems(args), *_process_problems(args)]
    if problems:
        raise ConfigError([f"args: {problem}" for problem in problems])


def _order_problems(args: Any) -> Iterator[str]:
    strategy = getattr(args, "train_sampling_strategy", None)
    by_length = getattr(args, "group_by_length", False) or strategy in ("group_by_length", "batch_rebalance")
    if by_length:
        name = "group_by_length" if strategy is None else f"train_sampling_strategy={strategy!r}"
        yield f"{name} orders rows by their length; the curriculum says which rows a step has"
    if getattr(args, "packing", False):
        yield "packing=True trains on sequences of several rows; rows are selected one by one: packing=False"
    if getattr(args, "shuffle_dataset", False):
        yield "shuffle_dataset=True shuffles through a buffer, across steps; the curriculum shuffles each phase"
    if not getattr(args, "dataloader_in_order", True):
        yield "dataloader_in_order=False lets batches overtake each other; the curriculum says which rows a step has"
    if args.dataloader_persistent_workers:
        yield (
            "dataloader_persistent_workers=True keeps workers that do not learn of the next selection: "
            "dataloader_persistent_workers=False starts them anew in each phase"
        )


def _process_problems(args: Any) -> Iterator[str]:
    config = args.accelerator_config
    if args.auto_find_batch_size:
        yield "auto_find_batch_size=True changes the number of rows in a step; a schedule counts steps of equal size"
    if getattr(config, "split_batches", False):
        yield "accelerator_config split_batches=True: per_device_train_batch_size has to be that of a device"
    if getattr(config, "dispatch_batches", None) is not False:
        yield (
            "accelerator_config has to say that each process reads its own rows, "
            'accelerator_config={"dispatch_batches": False}: by default one reads for all where a data set has no '
            "length, which cannot join batches of different lengths, nor end where nothing is left to read"
        )
    parallel = getattr(args, "parallelism_config", None)
    if any(getattr(parallel, f"{axis}_size", 1) > 1 for axis in ("tp", "cp", "sp")):
        yield "parallelism_config shares a row over processes (tp, cp, sp); each process has to read rows of its own"
    kind = getattr(args.distributed_state.distributed_type, "name", "NO") if args.distributed_state else "NO"
    if kind in SHARDED or getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
        yield "parameters or gradients are shared over processes, which is not supported yet"
