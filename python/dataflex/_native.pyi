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
