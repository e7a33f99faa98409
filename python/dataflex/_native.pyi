from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

API_VERSION: int

def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def isa() -> str: ...
def sjlt_accumulate(
    grads: NDArray[np.float32] | NDArray[np.int16],
    type: str,
    offset: int,
    variant: str,
    constants: Sequence[float],
    exp_avg: NDArray[np.float32] | None,
    exp_avg_sq: NDArray[np.float32] | None,
    exponents: NDArray[np.int32],
    seed: int,
    sparsity: int,
    sums: NDArray[np.int64],
    not_finite: NDArray[np.uint8],
    saturated: NDArray[np.int64],
    threads: int,
) -> None: ...
def rademacher_accumulate(
    grads: NDArray[np.float32] | NDArray[np.int16],
    type: str,
    offset: int,
    variant: str,
    constants: Sequence[float],
    exp_avg: NDArray[np.float32] | None,
    exp_avg_sq: NDArray[np.float32] | None,
    exponents: NDArray[np.int32],
    seed: int,
    sums: NDArray[np.int64],
    not_finite: NDArray[np.uint8],
    saturated: NDArray[np.int64],
    threads: int,
) -> None: ...
def gaussian_accumulate(
    grads: NDArray[np.float32] | NDArray[np.int16],
    type: str,
    offset: int,
    variant: str,
    constants: Sequence[float],
    exp_avg: NDArray[np.float32] | None,
    exp_avg_sq: NDArray[np.float32] | None,
    seed: int,
    sums: NDArray[np.float64],
    not_finite: NDArray[np.uint8],
    threads: int,
) -> None: ...
def dots_accumulate(
    grads: NDArray[np.float32] | NDArray[np.int16],
    type: str,
    offset: int,
    variant: str,
    constants: Sequence[float],
    exp_avg: NDArray[np.float32] | None,
    exp_avg_sq: NDArray[np.float32] | None,
    directions: NDArray[np.float32],
    sums: NDArray[np.float64],
    not_finite: NDArray[np.uint8],
    threads: int,
) -> None: ...
def adam_pass(
    grads: NDArray[np.float32] | NDArray[np.int16],
    type: str,
    offset: int,
    variant: str,
    constants: Sequence[float],
    exp_avg: NDArray[np.float32] | None,
    exp_avg_sq: NDArray[np.float32] | None,
    threads: int,
) -> float: ...

cuda_built: bool

def cuda_problem(device: int) -> str: ...

# What follows exists where cuda_built.
class CudaBlock:
    def __init__(
        self,
        values: int,
        type: str,
        rows: int,
        row_stride: int,
        count: int,
        offset: int,
        variant: str,
        constants: Sequence[float],
        exp_avg: int,
        exp_avg_sq: int,
    ) -> None: ...

def cuda_workspace_bytes(kind: str, block: CudaBlock, dim: int) -> int: ...
def cuda_sjlt_accumulate(
    block: CudaBlock,
    exponents: int,
    seed: int,
    dim: int,
    sparsity: int,
    sums: int,
    not_finite: int,
    saturated: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_rademacher_accumulate(
    block: CudaBlock,
    exponents: int,
    seed: int,
    dim: int,
    sums: int,
    not_finite: int,
    saturated: int,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_gaussian_accumulate(
    block: CudaBlock,
    seed: int,
    dim: int,
    sums: int,
    not_finite: int,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
def cuda_dots_accumulate(
    block: CudaBlock,
    directions: int,
    direction_stride: int,
    dim: int,
    sums: int,
    not_finite: int,
    workspace: int,
    device: int,
    stream: int,
) -> None: ...
