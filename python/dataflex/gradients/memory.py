"""How many tokens of activations fit into memory: ``feature_batch_tokens: auto``.

The largest power of two whose activations take at most half of the memory that is free now, and no more tokens than
still make a batch faster (:data:`MOST_TOKENS`). A token's activations are measured: what autograd keeps of one forward
pass of the longest row. The other half is for the gradients in the backward pass and for other programs.

Powers of two and the limit make the number the same on most machines and in a resumed run. Where it differs, only the
shapes of the batches do, and features change by rounding alone; the number is part of a store's fingerprint, so that
rows of different batches are never mixed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

BatchTokens = Annotated[int, Field(ge=1)] | Literal["auto"]
"""Most padded tokens of one batch, or ``auto``."""

MOST_TOKENS = {"cpu": 2048, "cuda": 16384}
"""On two CPU cores, rows of 33 tokens (SmolLM2-135M, LoRA) took 520, 460, 440 and 365 ms of CPU time in batches of 264,
528, 1023 and 2046 tokens, and the same within 5 % in twice as many; rows of 200 tokens gained nothing beyond 600. The
number for GPUs is not measured."""
FEWEST_TOKENS = 64
SHARE = 0.5
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device) -> int:
    """Memory that is free for tensors on ``device`` now; on the CPU within the limit of the process's cgroup."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit is None or used is None:
        return _free_ram()
    return min(_free_ram(), max(0, limit - used + _cached_files()))


def bytes_per_token(losses: Callable[[], Tensor], tokens: int, model: nn.Module) -> float:
    """Bytes that autograd keeps for the backward pass of ``losses``, a token.

    Args:
        losses: Runs a forward pass.
        tokens: Padded tokens b x t in it.
        model: Its parameters do not count.
    """
    return kept_bytes(losses, model) / tokens


def kept_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of what ``forward`` returns; on the meta device, would keep.

    Args:
        forward: Runs a forward pass.
        model: Its parameters and buffers do not count.
    """
    # Storages are told apart by their objects: on the meta device all have the address of their values in common.
    own = {value.untyped_storage()._cdata for value in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = saved  # held, so that no other storage takes its place
        return saved

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        output = forward()
    # Weights that were whole for the pass alone are empty by now.
    found = sum(saved.untyped_storage().nbytes() for saved in kept.values())
    del output
    return found


def fitting_tokens(available: int, per_token: float, device_type: str) -> int:
    """Tokens of one batch: the largest power of two that fits, within the limits of the module."""
    fitting = SHARE * available / max(per_token, 1.0)
    tokens = MOST_TOKENS.get(device_type, MOST_TOKENS["cpu"])
    while tokens > max(fitting, FEWEST_TOKENS):
        tokens //= 2
    return tokens


def _free_ram() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: a quarter of the installed memory may well be free
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def _cached_files() -> int:
    """Bytes of files in the cgroup's memory that the kernel gives up on demand; they count as used."""
    try:
        lines = (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, StopIteration):
        return 0


def _number(file: Path) -> int | None:
    """The number in a file; None where there is no file, or the word ``max``."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
