"""What works in this installation, and how to mend what does not: ``dataflex doctor``.

Each check passes, warns (dataflex works, more slowly or without an extra) or fails (something gives wrong results or an
error). The kernels are not trusted because they load: each kind projects 1,000 values and is compared with its plain
torch reference.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from dataflex.config.provenance import versions
from dataflex.doctor.check import Check
from dataflex.plugins.registry import registry
from dataflex.projection.adam import AdamMoments
from dataflex.projection.kernels import fixed_point, gaussian, rademacher, sjlt
from dataflex.projection.kernels.block import Block, arguments
from dataflex.projection.kernels.native import native_status
from dataflex.projection.projector import Projector

ROWS, COLUMNS, DIM = 4, 250, 256
GAUSSIAN_TOLERANCE = 1e-5


def diagnose() -> list[Check]:
    """Run all checks; none of them raises for what it finds."""
    return [*_versions(), _native(), *_kernels(), _threads(), _devices(), *_plugins()]


def _versions() -> Iterator[Check]:
    for package, number in versions().items():
        missing = number == "not installed"
        yield Check(
            package, "fail" if missing else "pass", number, "pip install dataflex-sdk again" if missing else None
        )


def _native() -> Check:
    status = native_status()
    if status.module is not None:
        return Check("native kernels", "pass", f"{status.module.isa()}, {status.reason}")
    asked = status.reason.startswith("DATAFLEX_NATIVE")
    fix = (
        "unset DATAFLEX_NATIVE"
        if asked
        else "pip install --force-reinstall --no-deps dataflex-sdk, with a C++ compiler"
    )
    return Check("native kernels", "warn", f"plain torch runs in their place: {status.reason}", fix)


def _kernels() -> Iterator[Check]:
    """Each kind of projection against its reference, bit by bit where it adds integers."""
    generator = torch.Generator().manual_seed(0)
    grads = torch.randn(ROWS, COLUMNS, generator=generator)
    exp_avg, exp_avg_sq = torch.randn(COLUMNS, generator=generator), torch.rand(COLUMNS, generator=generator)
    adam = AdamMoments(0.1 * exp_avg, 0.1 + exp_avg_sq, step=10, betas=(0.9, 0.999), eps=1e-8)
    path = "native" if native_status().module else "plain torch"
    for kind in ("sjlt", "rademacher", "gaussian"):
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # of a slow path: reported above
            found = Projector(DIM, kind).project(grads, adam)
        expected = _reference(kind, Block(*arguments(grads, 0, adam)))
        error = float((found.double() - expected).norm() / expected.norm())
        right = error <= GAUSSIAN_TOLERANCE if kind == "gaussian" else torch.equal(found, expected.float())
        detail = f"{path}: {ROWS * COLUMNS} values, relative difference from the reference {error:.1e}"
        yield Check(
            f"projection {kind}", "pass" if right else "fail", detail, None if right else "report this as a bug"
        )


def _reference(kind: str, block: Block) -> Tensor:
    """Features ``(b, k)`` float64 of the plain torch references, seed 0."""
    not_finite = torch.zeros(ROWS, dtype=torch.uint8)
    if kind == "gaussian":
        sums = torch.zeros(ROWS, DIM, dtype=torch.float64)
        gaussian.accumulate_reference(block, sums, not_finite, seed=0)
        return sums / math.sqrt(DIM)
    limit, scale = (sjlt.LIMIT, 8**-0.5) if kind == "sjlt" else (rademacher.LIMIT, DIM**-0.5)
    exponent = fixed_point.adam_exponent((0.9, 0.999), limit)
    exponents = torch.full((ROWS,), exponent, dtype=torch.int32)
    integers, saturated = torch.zeros(ROWS, DIM, dtype=torch.int64), torch.zeros(ROWS, dtype=torch.int64)
    if kind == "sjlt":
        sjlt.accumulate_reference(block, exponents, integers, not_finite, saturated, seed=0, sparsity=8)
    else:
        rademacher.accumulate_reference(block, exponents, integers, not_finite, saturated, seed=0)
    return fixed_point.features(integers, not_finite, exponent, scale).double()


def _threads() -> Check:
    threads, processors = torch.get_num_threads(), _processors()
    if threads > processors:
        fix = f"OMP_NUM_THREADS={processors}, or torch.set_num_threads({processors})"
        return Check("threads", "warn", f"{threads} threads on {processors} processors slow each other down", fix)
    return Check("threads", "pass", f"{threads} of {processors} processors")


def _processors() -> int:
    """Processors that this process may use, where the system tells, else all."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _devices() -> Check:
    if not torch.cuda.is_available():
        return Check("devices", "pass", "CPU only")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("devices", "pass", ", ".join(names))


def _plugins() -> Iterator[Check]:
    for plugin in registry().plugins:
        name = f"plugin {plugin.name}"
        if plugin.error:
            reason = plugin.error.strip().splitlines()[-1]
            yield Check(name, "warn", reason, f"`dataflex plugins` shows why; reinstall {plugin.distribution}")
        else:
            yield Check(name, "pass", f"{plugin.distribution} {plugin.version}")
