"""Access to the native kernels, and the announcement of what is used in their place.

``dataflex._native`` may be missing (installed with ``DATAFLEX_NATIVE=0``, no compiler, another platform): everything
then runs in plain torch, with the same results. ``DATAFLEX_NATIVE=0`` at run time asks for that as well.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from dataflex.projection.kernels import cuda
from dataflex.projection.kernels.block import Block

API_VERSION = 6
"""Version of the extension's functions that this package calls."""
SLOWDOWN = {"sjlt": 10, "rademacher": 250, "gaussian": 40, "dots": 40}
"""Processor time of plain torch over that of the native kernel, measured on one core with AVX-512 (b = 8, p = 20,000,
k = 1024; ``dots``: 8 directions)."""


@dataclass(frozen=True, slots=True)
class NativeStatus:
    """Whether the native kernels are used, and why.

    Attributes:
        module: ``dataflex._native``, or None.
        reason: Where it was found, or why it is not used.
    """

    module: ModuleType | None
    reason: str


@cache
def native_status() -> NativeStatus:
    """Import the native kernels once."""
    if os.environ.get("DATAFLEX_NATIVE") == "0":
        return NativeStatus(None, "DATAFLEX_NATIVE=0")
    try:
        module = importlib.import_module("dataflex._native")
    except ImportError as error:
        return NativeStatus(None, f"{type(error).__name__}: {error}")
    if module.API_VERSION != API_VERSION:
        return NativeStatus(
            None,
            f"{module.__file__} was built for version {module.API_VERSION} of its functions, expected {API_VERSION}; "
            "reinstall dataflex-sdk",
        )
    return NativeStatus(module, str(module.__file__))


@cache
def announce(message: str) -> None:
    """Warn about a slower path, once a process and message."""
    warnings.warn(message, RuntimeWarning, stacklevel=3)


def kernel(kind: str, device: torch.device) -> Callable[..., None] | None:
    """What accumulates projections of this kind on this device natively: called with a block, tensors and numbers.

    None, announced once with its cost: plain torch has to do.
    """
    status = native_status()
    reason = status.reason
    if device.type not in ("cpu", "cuda"):
        reason = f"there is no kernel for {device.type}"
    elif status.module is not None and device.type == "cpu":
        return partial(_on_cpu, getattr(status.module, f"{kind}_accumulate"))
    elif status.module is not None:
        reason = cuda.problem(status.module, device)
        if not reason:
            return partial(cuda.accumulate, status.module, kind)
    if device.type != "meta":
        cost = f"about {SLOWDOWN[kind]} times slower than the native kernel"
        what = "exact inner products" if kind == "dots" else f"{kind} projections"
        announce(f"{what} run in plain torch, {cost}: {reason}")
    return None


def _on_cpu(function: Callable[..., None], block: Block, **arguments: Any) -> None:
    views = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in arguments.items()}
    function(**block.native(), **views)
