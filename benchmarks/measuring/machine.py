"""Facts about the machine and the software that a table of measurements needs beside it."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import dataflex
from dataflex.projection.kernels.native import native_status

_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")


def facts(device: torch.device) -> dict[str, Any]:
    """Processor, its vector units, threads, versions, date; JSON-able."""
    native = native_status()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "vector units": [flag for flag in _CPU_FLAGS if flag in (_cpuinfo("flags") or "").split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "other load": os.getloadavg()[0],
        "kernels": native.module.isa() if native.module is not None else f"plain torch ({native.reason})",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "dataflex-sdk": dataflex.__version__,
        },
    }


def describe(facts: dict[str, Any]) -> str:
    """The facts in one paragraph of Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['date']}; {facts['processor']}, {facts['cores']} cores ({', '.join(facts['vector units'])}), "
        f"device {facts['device']}; {facts['threads']} threads; kernels: {facts['kernels']}; load average "
        f"{facts['other load']:.1f} at the start; {versions}."
    )


def _cpuinfo(key: str) -> str | None:
    """The first value of a key in Linux's processor table."""
    table = Path("/proc/cpuinfo")
    if not table.is_file():
        return None
    lines = (line.partition(":") for line in table.read_text(encoding="utf-8").splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), None)
