"""Bugs planted in the CUDA kernels, one at a time, and what catches each.

A mutation replaces a text that occurs once in a file of csrc/cuda. Detectors:

- ``values``: totals differ from the reference;
- ``order``: they differ only when threads run in another than the forward order;
- ``asan``: a report of AddressSanitizer or UndefinedBehaviorSanitizer;
- ``tsan``: a report of ThreadSanitizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cuda_sim.cases import Job, broken, make
from dataflex.projection.kernels import sjlt


def towards_one_side(sign: int, groups: int = 600) -> Job:
    """Gradients at the limit of the grid whose every product with P has one sign: sums pass 32 bits."""
    (_, negative), *_ = sjlt.placements(0, 16 * groups, dim=16, sparsity=1, seed=5)
    grads = torch.where(negative, -sign, sign).float()
    return Job("sjlt", torch.stack([grads, -grads]), 0, 16, seed=5, sparsity=1)


JOBS = {
    "sjlt": make("sjlt", 3, 4096 + 301, offset=2**40 + 7, dim=256, variant="adamw"),
    "sjlt splits": make("sjlt", 2, 2 * 4096 + 301, dim=256),
    "sjlt windows": make("sjlt", 2, 300, dim=16384 + 8192, sparsity=1),
    "sjlt limit": towards_one_side(1),
    "rademacher": make("rademacher", 7, 300, offset=100, dim=100, variant="adamw"),
    "gaussian": make("gaussian", 3, 2048 + 71, offset=5, dim=65, variant="adamw"),
    "dots": make("dots", 9, 2 * 4096 + 77, dim=11, variant="adamw", gap=3),
    "dots not finite": broken(make("dots", 3, 300, dim=2)),
}


@dataclass(frozen=True)
class Mutation:
    """A planted bug.

    Attributes:
        name: What is wrong.
        file: In csrc/cuda.
        old: Text that occurs once.
        new: What replaces it.
        job: The job that shows it (:data:`JOBS`).
        caught_by: A detector that notices; others may as well.
        core: Whether every run of the tests plants it; the others need ``-m exhaustive``.
    """

    name: str
    file: str
    old: str
    new: str
    job: str
    caught_by: str
    core: bool = False


BARRIER = "__syncthreads();"
MUTATIONS = [
    Mutation(
        "sjlt: sums are used before all are cleared",
        "sjlt.cu",
        f"  {BARRIER}\n\n  const uint64_t products",
        "  const uint64_t products",
        "sjlt",
        "tsan",
        core=True,
    ),
    Mutation(
        "sjlt: sums are read before all are added",
        "sjlt.cu",
        f"  {BARRIER}\n  for (int i = threadIdx.x; i < size; i += kThreads) {{\n    if",
        "  for (int i = threadIdx.x; i < size; i += kThreads) {\n    if",
        "sjlt",
        "tsan",
    ),
    Mutation(
        "sjlt: columns beyond the block",
        "sjlt.cu",
        "here < block.count && i % kRows",
        "i % kRows",
        "sjlt",
        "asan",
        core=True,
    ),
    Mutation("sjlt: rows beyond the block", "sjlt.cu", " && i % kRows < share.rows;", ";", "sjlt", "asan"),
    Mutation("sjlt: counter of the wrong group", "sjlt.cu", "lane / kCallsPerGroup;", "lane / 8;", "sjlt", "values"),
    Mutation(
        "sjlt: counter without its upper half",
        "sjlt.cu",
        "static_cast<uint32_t>(group >> 32)",
        "0u",
        "sjlt",
        "values",
        core=True,
    ),
    Mutation(
        "sjlt: placements from the wrong lane",
        "sjlt.cu",
        "group * kCallsPerGroup + j / 2",
        "group + j / 2 * 8",
        "sjlt",
        "values",
        core=True,
    ),
    Mutation(
        "sjlt: 32 bits overflow unnoticed",
        "sjlt.cu",
        "(value ^ after)) < 0)",
        "(value ^ after)) < 0 && false)",
        "sjlt limit",
        "values",
        core=True,
    ),
    Mutation(
        "sjlt: carries of the wrong sign",
        "sjlt.cu",
        "value < 0 ? -(int64_t{1} << 32)",
        "value > 0 ? -(int64_t{1} << 32)",
        "sjlt limit",
        "values",
    ),
    Mutation(
        "sjlt: outputs beyond the window",
        "sjlt.cu",
        "if (here < 0 || here >= share.outputs) continue;",
        "if (here < 0) continue;",
        "sjlt windows",
        "asan",
    ),
    Mutation(
        "sjlt: a batch in two splits",
        "sjlt.cu",
        "batch < share.end_batch;",
        "batch <= share.end_batch;",
        "sjlt splits",
        "values",
        core=True,
    ),
    Mutation(
        "rademacher: high bytes without their sign",
        "rademacher.cu",
        "multiply_add_signed(",
        "multiply_add_unsigned(",
        "rademacher",
        "values",
        core=True,
    ),
    Mutation(
        "rademacher: low bytes with a sign",
        "rademacher.cu",
        "multiply_add_unsigned(",
        "multiply_add_signed(",
        "rademacher",
        "values",
    ),
    Mutation(
        "rademacher: correction of the wrong sign",
        "rademacher.cu",
        "- 2 * negative",
        "+ 2 * negative",
        "rademacher",
        "values",
        core=True,
    ),
    Mutation(
        "rademacher: fragment of the wrong lane",
        "rademacher.cu",
        "kWarpLanes) + 4 * g + t)",
        "kWarpLanes) + g + 8 * t)",
        "rademacher",
        "values",
        core=True,
    ),
    Mutation(
        "rademacher: halves of 16 columns exchanged",
        "rademacher.cu",
        "+ c % 2 * 2 + h;",
        "+ c % 2 * 2 + 1 - h;",
        "rademacher",
        "values",
    ),
    Mutation(
        "rademacher: sums in the wrong rows",
        "rademacher.cu",
        "16 * m + 8 * (i / 2) + g",
        "16 * m + 8 * (i % 2) + g",
        "rademacher",
        "values",
    ),
    Mutation(
        "rademacher: a span is overwritten while it is read",
        "rademacher.cu",
        f"store(span + 1);\n    {BARRIER}",
        "store(span + 1);",
        "rademacher",
        "tsan",
        core=True,
    ),
    Mutation(
        "rademacher: one buffer where two are needed",
        "rademacher.cu",
        "buffers[span % 2 * kSpanQuads + quad]",
        "buffers[span % 1 * kSpanQuads + quad]",
        "rademacher",
        "tsan",
    ),
    Mutation(
        "rademacher: sum of q in every split",
        "rademacher.cu",
        "split == 0, sums",
        "true, sums",
        "rademacher",
        "values",
    ),
    Mutation(
        "rademacher: outputs beyond dim",
        "rademacher.cu",
        "output >= product.dim || ",
        "",
        "rademacher",
        "asan",
        core=True,
    ),
    Mutation(
        "rademacher: sums of q are not cleared",
        "rademacher.cu",
        "row_sums, 0, job.block.rows",
        "row_sums, 0, 0 * job.block.rows",
        "rademacher",
        "values",
    ),
    Mutation(
        "rademacher: sums of q are read before all are added",
        "rademacher.cu",
        f"  {BARRIER}\n  if (thread < rows) {{\n    add_to_total",
        "  if (thread < rows) {\n    add_to_total",
        "rademacher",
        "tsan",
    ),
    Mutation(
        "gaussian: entries are replaced while they are read",
        "gaussian.cu",
        f"end_run(run, sums);\n    {BARRIER}",
        "end_run(run, sums);",
        "gaussian",
        "tsan",
    ),
    Mutation(
        "gaussian: entries are read before all are made",
        "gaussian.cu",
        f"{BARRIER}\n    multiply_step",
        "multiply_step",
        "gaussian",
        "tsan",
        core=True,
    ),
    Mutation(
        "gaussian: splits write to one place",
        "gaussian.cu",
        "(share.split * job.block.rows + share.row + row + i)",
        "(share.row + row + i)",
        "gaussian",
        "values",
    ),
    Mutation("gaussian: columns beyond the block", "gaussian.cu", " && column < block.count", "", "gaussian", "asan"),
    Mutation(
        "gaussian: a workspace for one split",
        "plan.cpp",
        "plan.partial_sums = plan.splits * rows",
        "plan.partial_sums = rows",
        "gaussian",
        "asan",
        core=True,
    ),
    Mutation(
        "gaussian: odd and even parameters exchanged",
        "normal.h",
        "return {sign * x_axis, sign * y_axis};",
        "return {sign * y_axis, sign * x_axis};",
        "gaussian",
        "values",
    ),
    Mutation(
        "dots: directions' columns beyond the block",
        "dots.cu",
        "here < job.block.count && j < job.number",
        "j < job.number",
        "dots",
        "asan",
        core=True,
    ),
    Mutation(
        "dots: directions beyond the last",
        "dots.cu",
        "here < job.block.count && j < job.number",
        "here < job.block.count",
        "dots",
        "asan",
    ),
    Mutation("dots: rows beyond the block", "dots.cu", "row < block.rows && here", "here", "dots", "asan"),
    Mutation(
        "dots: lanes added in another order",
        "dots.cu",
        "half = kWarpLanes / 2; half > 0; half /= 2",
        "half = 1; half < kWarpLanes; half *= 2",
        "dots",
        "values",
        core=True,
    ),
    Mutation(
        "dots: columns of a lane added in another order",
        "dots.cu",
        "fma(value, static_cast<double>(q[j][i])",
        "fma(double{u[row][i ^ 1]}, static_cast<double>(q[j][i ^ 1])",
        "dots",
        "values",
    ),
    Mutation(
        "dots: pieces added in another order",
        "partial.h",
        "partial[part * count + i]",
        "partial[(parts - 1 - part) * count + i]",
        "dots",
        "values",
        core=True,
    ),
    Mutation(
        "dots: values that are not finite count",
        "dots.cu",
        "if (is_finite(value.u)) u[row][i]",
        "u[row][i]",
        "dots not finite",
        "values",
    ),
    Mutation(
        "dots: rows that are not finite go unnoticed",
        "dots.cu",
        "broken[row] |= !value.finite;",
        "broken[row] = !value.finite;",
        "dots not finite",
        "values",
    ),
    Mutation(
        "dots: pieces write to one place",
        "dots.cu",
        "(share.piece * job.block.rows + share.row + row)",
        "(share.row + row)",
        "dots",
        "values",
    ),
    Mutation(
        "dots: a workspace for one piece",
        "plan.cpp",
        "plan.partial_sums = plan.pieces * rows * width",
        "plan.partial_sums = rows * width",
        "dots",
        "asan",
        core=True,
    ),
]
