"""The CUDA kernels on tensors: checks them, and passes addresses to the extension on torch's current stream.

The extension knows no torch. Nothing here waits for the device, so the exponents of rows, which live there, are not
checked; those of :mod:`dataflex.projection.kernels.fixed_point` are always in range.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.projection.kernels.block import VALUE_TYPES, Block

DTYPES = {
    "exponents": torch.int32,
    "sums": torch.int64,
    "not_finite": torch.uint8,
    "saturated": torch.int64,
    "exp_avg": torch.float32,
    "exp_avg_sq": torch.float32,
}
FLOAT_SUMS = ("gaussian", "dots")
"""The kinds whose sums are float64."""


def problem(module: ModuleType, device: torch.device) -> str:
    """Why the extension's CUDA kernels cannot run on a device; empty if they can."""
    if not module.cuda_built:
        return "dataflex-sdk was built without CUDA (reinstall it where nvcc is on PATH, with DATAFLEX_CUDA=1)"
    return str(module.cuda_problem(torch.cuda.current_device() if device.index is None else device.index))


def accumulate(
    module: ModuleType,
    kind: str,
    block: Block,
    *,
    sums: Tensor,
    not_finite: Tensor,
    seed: int | None = None,
    exponents: Tensor | None = None,
    saturated: Tensor | None = None,
    sparsity: int | None = None,
    directions: Tensor | None = None,
) -> None:
    """Add the projection of a block, or its inner products, to sums.

    Args:
        module: ``dataflex._native``.
        kind: ``sjlt``, ``rademacher``, ``gaussian`` or ``dots``.
        block: Gradients of b rows on a CUDA device.
        sums: ``(b, k)`` int64, or float64 for ``gaussian`` and ``dots`` (k = 1 + d); added to.
        not_finite: ``(b,)`` uint8, set to 1 where a value is not finite.
        seed: Seed of P in [0, 2^64); not for ``dots``.
        exponents: ``(b,)`` int32 in [-126, 127]; not for ``gaussian`` and ``dots``.
        saturated: ``(b,)`` int64, added to: values beyond the grid; not for ``gaussian`` and ``dots``.
        sparsity: Of ``sjlt`` alone.
        directions: Of ``dots`` alone: ``(d, n)`` float32, rows may be strided.

    Raises:
        ProjectionError: A tensor is on another device, or not of the dtype, shape and layout above.
        RuntimeError: CUDA reports an error.
    """
    rows, count = block.grads.shape
    results = {"exponents": exponents, "saturated": saturated, "not_finite": not_finite}
    shapes: dict[str, tuple[Tensor, tuple[int, ...]]]
    shapes = {name: (tensor, (rows,)) for name, tensor in results.items() if tensor is not None}
    shapes["sums"] = sums, (rows, sums.shape[-1])
    moments = {"exp_avg": block.exp_avg, "exp_avg_sq": block.exp_avg_sq}
    shapes |= {name: (tensor, (count,)) for name, tensor in moments.items() if tensor is not None}
    _check(kind, block, shapes, directions)

    device, dim = block.grads.device, sums.shape[1]
    native = module.CudaBlock(
        values=block.grads.data_ptr(),
        type=VALUE_TYPES[block.grads.dtype],
        rows=rows,
        row_stride=block.grads.stride(0),
        count=count,
        offset=block.offset,
        variant=block.variant,
        constants=tuple(block.constants),
        **{name: 0 if tensor is None else tensor.data_ptr() for name, tensor in moments.items()},
    )
    arguments = {name: tensor.data_ptr() for name, (tensor, _) in shapes.items() if name not in moments}
    given = {"seed": seed, "sparsity": sparsity}
    arguments |= {name: value for name, value in given.items() if value is not None}
    if directions is not None:
        arguments |= {"directions": directions.data_ptr(), "direction_stride": directions.stride(0)}
    # Allocated on the stream that uses it, so torch gives the memory to nobody else before the kernels have run.
    size = module.cuda_workspace_bytes(kind, native, dim)
    workspace = torch.empty(size, dtype=torch.uint8, device=device)
    if size:
        arguments["workspace"] = workspace.data_ptr()
    stream = torch.cuda.current_stream(device).cuda_stream
    function = getattr(module, f"cuda_{kind}_accumulate")
    function(native, dim=dim, device=block.grads.get_device(), stream=stream, **arguments)


def _check(
    kind: str, block: Block, shapes: dict[str, tuple[Tensor, tuple[int, ...]]], directions: Tensor | None
) -> None:
    grads = block.grads
    problems = []
    if grads.numel() and grads.shape[1] > 1 and grads.stride(1) != 1:
        problems.append(f"values of a row must be contiguous, got strides {grads.stride()}")
    for name, (tensor, shape) in shapes.items():
        dtype = torch.float64 if name == "sums" and kind in FLOAT_SUMS else DTYPES[name]
        if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
            problems.append(
                f"{name} must be contiguous {dtype} of shape {shape}, got {tensor.dtype} {tuple(tensor.shape)} "
                f"with strides {tensor.stride()}"
            )
        if tensor.device != grads.device:
            problems.append(f"{name} is on {tensor.device}, gradients on {grads.device}")
    if directions is not None:
        problems += _direction_problems(directions, grads, shapes["sums"][0].shape[-1] - 1)
    if problems:
        raise ProjectionError(f"{kind}: " + "; ".join(problems))


def _direction_problems(directions: Tensor, grads: Tensor, number: int) -> list[str]:
    problems = []
    shape = number, grads.shape[1]
    if directions.shape != shape or directions.dtype != torch.float32:
        problems.append(
            f"directions must be torch.float32 of shape {shape}, got {directions.dtype} {tuple(directions.shape)}"
        )
    elif directions.numel() and directions.shape[1] > 1 and directions.stride(1) != 1:
        problems.append(f"values of a direction must be contiguous, got strides {directions.stride()}")
    if directions.device != grads.device:
        problems.append(f"directions are on {directions.device}, gradients on {grads.device}")
    return problems
