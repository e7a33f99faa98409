"""Jobs for the emulator, and what the reference says about them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dataflex.projection.adam import AdamMoments, AdamVariant
from dataflex.projection.kernels import dots, fixed_point, gaussian, rademacher, sjlt
from dataflex.projection.kernels.block import VALUE_TYPES, Block
from helpers.projections import gradients, moments

LIMITS = {"sjlt": sjlt.LIMIT, "rademacher": rademacher.LIMIT}
GAUSSIAN_TOLERANCE = 1e-5
FLOAT_SUMS = ("gaussian", "dots")


@dataclass
class Totals:
    """What a job adds to: ``(b, k)`` sums, ``(b,)`` uint8 flags, ``(b,)`` int64 counts.

    Sums are int64, of ``gaussian`` and ``dots`` float64.
    """

    sums: Tensor
    not_finite: Tensor
    saturated: Tensor


@dataclass(frozen=True)
class Job:
    """One call of a kernel.

    Attributes:
        kind: ``sjlt``, ``rademacher``, ``gaussian`` or ``dots``.
        grads: ``(b, p)``, possibly a slice of longer rows.
        offset: Parameter index of the first column.
        dim: Outputs; of ``dots``, one more than directions.
        seed: Seed of P.
        sparsity: Of ``sjlt``.
        adam: Moments, or None for raw gradients.
        gap: Between the directions of ``dots``.
        finer: Added to the exponents that fit the rows: 1 and more make values saturate.
    """

    kind: str
    grads: Tensor
    offset: int
    dim: int
    seed: int = 2**63 + 11
    sparsity: int = 8
    adam: AdamMoments | None = None
    finer: int = 0
    gap: int = 0

    @property
    def rows(self) -> int:
        """b."""
        return self.grads.shape[0]

    def exponents(self) -> Tensor:
        """``(b,)`` int32."""
        if self.kind in FLOAT_SUMS:
            return torch.zeros(self.rows, dtype=torch.int32)
        limit = LIMITS[self.kind]
        if self.adam is None:
            return (fixed_point.raw_exponents(self.grads, limit) + self.finer).clamp(max=127).int()
        exponent = fixed_point.adam_exponent(self.adam.effective_betas, limit) + self.finer
        return torch.full((self.rows,), exponent, dtype=torch.int32)

    def directions(self) -> Tensor:
        """``(d, n)`` float32, rows ``gap`` values apart."""
        count = self.grads.shape[1]
        generator = torch.Generator().manual_seed(count)
        return torch.randn(self.dim - 1, count + self.gap, generator=generator)[:, :count]

    def totals(self) -> Totals:
        """What there is before the job: not nothing, because kernels add."""
        before = torch.arange(self.rows * self.dim).reshape(self.rows, self.dim) - 1000
        not_finite, saturated = torch.zeros(self.rows, dtype=torch.uint8), torch.arange(self.rows)
        sums = {"gaussian": torch.zeros_like(before).double(), "dots": before / 7.0}.get(self.kind, before)
        return Totals(sums.double() if self.kind == "dots" else sums, not_finite, saturated)

    def to_bytes(self) -> bytes:
        """The format of main.cpp."""
        variant, constants = ("none", (0.0,) * 7) if self.adam is None else (self.adam.variant, self.adam.constants())
        count, stride = self.grads.shape[1], self.grads.stride(0)
        sizes = (self.rows, count, stride, self.offset, self.dim, self.sparsity, self.seed, count + self.gap)
        header = (self.kind, VALUE_TYPES[self.grads.dtype], variant, *sizes, *map(repr, constants))
        bits = self.grads.view(torch.int32 if self.grads.dtype == torch.float32 else torch.int16)
        totals = self.totals()
        arrays = [_with_gaps(bits), *([] if self.adam is None else [self.adam.exp_avg, self.adam.exp_avg_sq])]
        arrays += [_with_gaps(self.directions())] if self.kind == "dots" else []
        arrays += [self.exponents(), totals.sums, totals.not_finite, totals.saturated]
        return " ".join(map(str, header)).encode() + b"\n" + b"".join(array.numpy().tobytes() for array in arrays)

    def reference(self) -> Totals:
        """What there is after the job."""
        totals, adam = self.totals(), self.adam
        block = (
            Block(self.grads, self.offset, None, None, "none", (0.0,) * 7)
            if adam is None
            else Block(self.grads, self.offset, adam.exp_avg, adam.exp_avg_sq, adam.variant, adam.constants())
        )
        if self.kind == "dots":
            dots.accumulate_reference(block, self.directions(), totals.sums, totals.not_finite)
            return totals
        if self.kind == "gaussian":
            gaussian.accumulate_reference(block, totals.sums, totals.not_finite, seed=self.seed)
            return totals
        results = (block, self.exponents(), totals.sums, totals.not_finite, totals.saturated)
        if self.kind == "sjlt":
            sjlt.accumulate_reference(*results, seed=self.seed, sparsity=self.sparsity)
        else:
            rademacher.accumulate_reference(*results, seed=self.seed)
        return totals


def _with_gaps(rows: Tensor) -> Tensor:
    """Rows as they lie in memory, but without a gap after the last."""
    number, count = rows.shape
    return rows.as_strided(((number - 1) * rows.stride(0) + count if rows.numel() else 0,), (1,))


def make(
    kind: str,
    rows: int,
    count: int,
    *,
    offset: int = 0,
    dim: int,
    variant: AdamVariant | None = None,
    dtype: torch.dtype = torch.float32,
    sparsity: int = 8,
    finer: int = 0,
    gap: int = 0,
) -> Job:
    """A job with heavy-tailed gradients whose rows lie ``gap`` values apart."""
    values = gradients(rows, count + gap).to(dtype)[:, :count]
    adam = None if variant is None else moments(count, variant)
    return Job(kind, values, offset, dim, sparsity=sparsity, adam=adam, finer=finer, gap=gap)


def broken(job: Job) -> Job:
    """The job with a NaN, an infinity and a gradient whose square overflows, in three different rows."""
    grads = job.grads.clone()
    for row, column, value in ((0, 0, math.nan), (1, -1, -math.inf), (2, grads.shape[1] // 2, 3e38)):
        grads[row, column] = value
    return replace(job, grads=grads)


def differs(job: Job, found: Totals, expected: Totals) -> str | None:
    """In what the totals differ from the expected ones; None if they do not."""
    for name in ("not_finite", "saturated"):
        if not torch.equal(getattr(found, name), getattr(expected, name)):
            return f"{name}: got {getattr(found, name).tolist()}, expected {getattr(expected, name).tolist()}"
    if job.kind == "gaussian" and job.grads.numel():
        errors = (found.sums - expected.sums).norm(dim=1) / expected.sums.norm(dim=1).clamp(min=1e-300)
        worst = float(errors.nan_to_num(math.inf).max())
        return None if worst <= GAUSSIAN_TOLERANCE else f"a row of features is off by {worst:.1e} of its norm"
    wrong = int((found.sums != expected.sums).sum())
    return None if wrong == 0 else f"{wrong} of {found.sums.numel()} sums differ"
