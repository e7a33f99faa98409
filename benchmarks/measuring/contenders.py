"""What is timed beside other packages: dataflex's projections, plain torch, and floors that nothing can pass.

The torch contenders are the fastest forms that we know: Adam works in place on pieces that stay in the cache, with
every constant folded into the moments; the sparse ones hold the very matrix that ``sjlt`` draws, ready for use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor

from dataflex.projection.dots import DotAccumulator, Dots
from dataflex.projection.kernels.block import Block, arguments
from dataflex.projection.kernels.native import native_status
from dataflex.projection.kernels.sjlt import placements
from dataflex.projection.projector import Projector
from measuring.case import Case
from measuring.timing import BASELINE, FLOOR, OURS, Contender

SPARSITY = 8
KINDS = ("sjlt", "rademacher", "gaussian")
SJLT, SJLT_RAW = "sjlt s=8, Adam fused", "sjlt s=8, raw gradients"
EXACT_ONE, EXACT_EIGHT = "exact, 1 direction, Adam fused", "exact, 8 directions, Adam fused"
ADAM_PASS, MEMORY_READ = "Adam pass alone, fused", "memory read"
TORCH_ADAM, INDEX_ADD, SPARSE_PRODUCT = "torch Adam alone", "torch Adam + index_add_", "torch Adam + sparse product"
INDEX_ADD_PLAIN = "torch Adam + index_add_, as first written"
GEMM, GEMM_BF16 = "fp32 GEMM, stored P", "bf16 GEMM, stored P"

SPARSE_PARAMETERS = 1_000_000  # of the sparse torch contenders, whose indices take 16 bytes a nonzero
STORED_ENTRIES = 2**27  # a stored P of 512 MB in float32, far more than a cache holds
ENTRIES = {"rademacher": 2**30, "gaussian": 2**28}  # of P in a call on the CPU: a second for 32 rows
REFERENCE_ENTRIES = 2**24  # of P in a call of a dense kind without a kernel
VALUES_AT_ONCE = 2**20  # of u: 4 MB, fastest of 2^17 ... 2^25 for Adam followed by index_add_

GPU_FACTOR = 64  # a GPU works on so many times more entries in a call


def fused_name(kind: str) -> str:
    """The row of a kind with Adam fused."""
    return SJLT if kind == "sjlt" else f"{kind}, Adam fused"


def floors(case: Case) -> Iterator[Contender]:
    """The least that any method must do: read the gradients; and normalise them, keeping nothing."""
    yield Contender(MEMORY_READ, FLOOR, case.grads.sum)
    native = native_status().module
    if case.device.type == "cpu" and native is not None:
        block = Block(*arguments(case.grads, 0, case.adam))
        yield Contender(ADAM_PASS, FLOOR, lambda: native.adam_pass(**block.native()))


def ours(case: Case, kinds: list[str]) -> Iterator[Contender]:
    """The kinds of dataflex, as a user calls them."""
    for kind in kinds:
        if kind == "sjlt":
            projector = Projector(case.dim, kind, sparsity=SPARSITY)
            yield Contender(SJLT, OURS, partial(projector.project, case.grads, case.adam))
            yield Contender(SJLT_RAW, OURS, partial(projector.project, case.grads))
        else:
            part, share = case.part(_entries(kind, case.device))
            projector = Projector(case.dim, kind)
            yield Contender(fused_name(kind), OURS, partial(projector.project, part.grads, part.adam), share)


def exact(case: Case) -> Iterator[Contender]:
    """Squares and inner products with one and with eight directions, without a projection; k does not matter."""
    directions = torch.randn(8, case.parameters, device=case.device)
    for name, number in ((EXACT_ONE, 1), (EXACT_EIGHT, 8)):
        yield Contender(name, OURS, partial(_products, case, directions[:number]), stored=4 * number * case.parameters)


def _products(case: Case, directions: Tensor) -> Dots:
    dots = DotAccumulator(directions, case.rows, [(0, case.parameters)], case.device)
    dots.add(case.grads, 0, case.adam)
    return dots.result()


def baselines(case: Case) -> Iterator[Contender]:
    """Plain torch."""
    normalised = torch.empty_like(case.grads)
    yield Contender(TORCH_ADAM, BASELINE, lambda: torch_adam(case, normalised))
    part, share = case.part(SPARSE_PARAMETERS * case.dim)
    nonzeros = SPARSITY * case.parameters
    yield Contender(INDEX_ADD, BASELINE, index_add(part), share, stored=nonzeros * 8)
    yield Contender(INDEX_ADD_PLAIN, BASELINE, index_add_plain(part), share, stored=nonzeros * 12)
    yield Contender(SPARSE_PRODUCT, BASELINE, sparse_product(part), share, stored=nonzeros * 8)
    part, share = case.part(STORED_ENTRIES)
    matrix = torch.randn(part.parameters, case.dim, device=case.device)
    for name, dtype in ((GEMM, torch.float32), (GEMM_BF16, torch.bfloat16)):
        bytes_stored = case.parameters * case.dim * dtype.itemsize
        yield Contender(name, BASELINE, stored_product(part.grads, matrix.to(dtype)), share, stored=bytes_stored)


def torch_adam(case: Case, out: Tensor, consume: Callable[[int, int, Tensor], None] | None = None) -> None:
    """Adam normalisation of ``case.grads`` into ``out``, a cache's worth of columns at a time.

    Args:
        case: b gradients of p parameters.
        out: ``(b, p)``, or ``(b, n)`` with n columns at a time where ``consume`` takes each piece.
        consume: Receives ``(start, stop, u)`` with ``(b, stop - start)`` u, which the next piece overwrites.
    """
    b1, c1, b2, c2, r1, r2, eps = case.adam.constants()
    mean, square = case.adam.exp_avg * (b1 * r1), case.adam.exp_avg_sq * (b2 * r2)  # (p,) once for all rows
    width = columns_at_once(case)
    scratch = torch.empty(case.rows, width, device=case.device)
    for start in range(0, case.parameters, width):
        stop = min(start + width, case.parameters)
        g, bottom = case.grads[:, start:stop], scratch[:, : stop - start]
        u = out[:, start:stop] if consume is None else out[:, : stop - start]
        torch.addcmul(square[start:stop], g, g, value=c2 * r2, out=bottom).sqrt_().add_(eps)
        torch.add(mean[start:stop], g, alpha=c1 * r1, out=u).div_(bottom)
        if consume is not None:
            consume(start, stop, u)


def columns_at_once(case: Case) -> int:
    """Columns of u that stay in the cache; all of them on a GPU."""
    return case.parameters if case.device.type == "cuda" else min(max(VALUES_AT_ONCE // case.rows, 1), case.parameters)


def index_add(case: Case) -> Callable[[], Tensor]:
    """Adam, then one ``index_add_`` a repetition of the sparse map: ``(b, k)`` features.

    Negative entries go to a second half of the outputs, which is subtracted: faster than a product with the signs.
    """
    piece = torch.empty(case.rows, columns_at_once(case), device=case.device)
    places = [output + case.dim * negative for output, negative in _columns(case)]  # (p,) each, below 2 k

    def run() -> Tensor:
        halves = torch.zeros(case.rows, 2 * case.dim, device=case.device)

        def add(start: int, stop: int, u: Tensor) -> None:
            for place in places:
                halves.index_add_(1, place[start:stop], u)

        torch_adam(case, piece, add)
        positive, negative = halves[:, : case.dim], halves[:, case.dim :]
        features: Tensor = (positive - negative) * SPARSITY**-0.5
        return features

    return run


def index_add_plain(case: Case) -> Callable[[], Tensor]:
    """The same as one writes it first: the formula as it stands, whole tensors, a product with the signs."""
    columns = [(output, _signs(negative)) for output, negative in _columns(case)]
    b1, c1, b2, c2, r1, r2, eps = case.adam.constants()

    def run() -> Tensor:
        mean = b1 * case.adam.exp_avg + c1 * case.grads
        square = b2 * case.adam.exp_avg_sq + c2 * case.grads**2
        u = mean * r1 / (torch.sqrt(square * r2) + eps)
        features = torch.zeros(case.rows, case.dim, device=case.device)
        for output, signs in columns:
            features.index_add_(1, output, u * signs)
        return features

    return run


def sparse_product(case: Case) -> Callable[[], Tensor]:
    """Adam, then the product with the sparse map as a stored CSR matrix: ``(b, k)`` features."""
    normalised = torch.empty_like(case.grads)
    matrix = _csr(case.parameters, case.dim, case.device)

    def run() -> Tensor:
        torch_adam(case, normalised)
        features: Tensor = matrix @ normalised.T.contiguous()  # (k, b)
        return features.T

    return run


def stored_product(grads: Tensor, matrix: Tensor) -> Callable[[], Tensor]:
    """The product with a stored dense ``(p, k)`` matrix, of gradients already in its dtype: ``(b, k)``."""
    return partial(torch.matmul, grads.to(matrix.dtype), matrix)


def _columns(case: Case) -> Iterator[tuple[Tensor, Tensor]]:
    return placements(0, case.parameters, dim=case.dim, sparsity=SPARSITY, seed=0, device=case.device)


def _signs(negative: Tensor) -> Tensor:
    signs: Tensor = torch.where(negative, -1.0, 1.0) * SPARSITY**-0.5
    return signs


@lru_cache(maxsize=1)  # for the cases that differ in b alone
def _csr(parameters: int, dim: int, device: torch.device) -> Tensor:
    """The sparse map as a CSR matrix ``(k, p)``."""
    nonzeros = list(placements(0, parameters, dim=dim, sparsity=SPARSITY, seed=0, device=device))
    outputs = torch.cat([output for output, _ in nonzeros])
    order = torch.argsort(outputs, stable=True)
    starts = torch.zeros(dim + 1, dtype=torch.int32, device=device)
    starts[1:] = torch.bincount(outputs, minlength=dim).cumsum(0)
    columns = torch.arange(parameters, dtype=torch.int32, device=device).repeat(SPARSITY)[order]
    values = torch.cat([_signs(negative) for _, negative in nonzeros])[order]
    return torch.sparse_csr_tensor(starts, columns, values, size=(dim, parameters), check_invariants=False)


def _entries(kind: str, device: torch.device) -> int:
    native = native_status().module is not None and hasattr(native_status().module, f"{kind}_accumulate")
    if device.type == "cuda":
        return ENTRIES[kind] * GPU_FACTOR
    return ENTRIES[kind] if native else REFERENCE_ENTRIES
