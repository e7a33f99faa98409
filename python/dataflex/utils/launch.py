"""How a command becomes several processes: torchrun's environment, and ``FORCE_TORCHRUN``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dataflex.errors import ConfigError

TRUE = ("1", "true", "yes", "on")
LOOPBACK = "127.0.0.1"


def is_main_process() -> bool:
    """Whether this process is the first of its launcher's, or was started alone."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def torchrun_command(arguments: Sequence[str]) -> list[str] | None:
    """The command that runs ``dataflex`` under torchrun, or None where this process is to do the work.

    ``FORCE_TORCHRUN=1`` asks for it, outside of a launcher. ``NPROC_PER_NODE`` (default: one a GPU, at least one),
    ``NNODES``, ``NODE_RANK``, ``MASTER_ADDR`` and ``MASTER_PORT`` are passed on; on one node the port is free to
    choose, so that several runs share a machine.

    Args:
        arguments: Command line of ``dataflex``.

    Raises:
        ConfigError: A variable is not a number, or several nodes are asked for without a master's address.
    """
    if os.environ.get("FORCE_TORCHRUN", "").lower() not in TRUE or "LOCAL_RANK" in os.environ:
        return None
    problems: list[str] = []
    processes = _number("NPROC_PER_NODE", None, problems)
    nodes = _number("NNODES", 1, problems) or 1
    rank = _number("NODE_RANK", 0, problems)
    address, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT", None, problems)
    if nodes > 1 and (address is None or port is None):
        problems.append(f"NNODES={nodes} needs MASTER_ADDR and MASTER_PORT of the first node")
    if problems:
        raise ConfigError(problems)
    place = [f"--node_rank={rank}", f"--master_addr={address or LOOPBACK}", f"--master_port={port}"]
    rendezvous = ["--standalone"] if port is None else place
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *(f"--nproc_per_node={processes or _devices()}", f"--nnodes={nodes}", *rendezvous),
        *("-m", "dataflex", *arguments),
    ]


def _number(name: str, default: int | None, problems: list[str]) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        problems.append(f"{name} must be a number, got {text!r}")
        return default
    return int(text)


def _devices() -> int:
    import torch

    return max(torch.cuda.device_count(), 1)
