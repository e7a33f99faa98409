"""Dispatch to the CUDA kernels; with a GPU (``-m gpu``), their bits. Without one, see tests/cuda_sim."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dataflex.errors import ProjectionError
from dataflex.projection.adam import AdamMoments, AdamVariant
from dataflex.projection.dots import DotAccumulator
from dataflex.projection.kernels import cuda, native
from dataflex.projection.kernels.block import Block
from dataflex.projection.projector import Projector
from helpers.projections import gradients, moments

GPU = torch.device("cuda", 0)


class RecordingModule:
    """Stands for the extension: keeps what it is called with."""

    cuda_built = True

    def __init__(self) -> None:
        self.block: dict[str, Any] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def CudaBlock(self, **values: Any) -> str:  # noqa: N802 - the extension's name
        self.block = values
        return "block"

    def cuda_workspace_bytes(self, kind: str, block: str, dim: int) -> int:
        return 0 if kind == "sjlt" else 64

    def __getattr__(self, name: str) -> Any:
        return lambda block, **arguments: self.calls.append((name, arguments))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> RecordingModule:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    return RecordingModule()


def arguments(**changes: Tensor) -> dict[str, Tensor]:
    values = {
        "exponents": torch.zeros(2, dtype=torch.int32),
        "sums": torch.zeros(2, 128, dtype=torch.int64),
        "not_finite": torch.zeros(2, dtype=torch.uint8),
        "saturated": torch.zeros(2, dtype=torch.int64),
    }
    return values | changes


def raw_block(grads: Tensor) -> Block:
    return Block(grads, 5, None, None, "none", (0.0,) * 7)


def test_addresses_and_sizes_reach_the_extension(module: RecordingModule) -> None:
    grads, adam = torch.ones(2, 40)[:, :30], moments(30)
    block = Block(grads, 5, adam.exp_avg, adam.exp_avg_sq, adam.variant, adam.constants())
    values = arguments()
    cuda.accumulate(module, "sjlt", block, seed=3, sparsity=8, **values)  # type: ignore[arg-type]
    assert module.block == {
        "values": grads.data_ptr(),
        "type": "float32",
        "rows": 2,
        "row_stride": 40,
        "count": 30,
        "offset": 5,
        "variant": "adamw",
        "constants": adam.constants(),
        "exp_avg": adam.exp_avg.data_ptr(),
        "exp_avg_sq": adam.exp_avg_sq.data_ptr(),
    }
    addresses = {name: tensor.data_ptr() for name, tensor in values.items()}
    expected = {"seed": 3, "dim": 128, "device": -1, "stream": 77, "sparsity": 8, **addresses}
    assert module.calls == [("cuda_sjlt_accumulate", expected)]


def test_kinds_that_need_memory_get_it(module: RecordingModule) -> None:
    values = arguments(sums=torch.zeros(2, 7, dtype=torch.float64))
    block = raw_block(torch.ones(2, 3, dtype=torch.bfloat16))
    cuda.accumulate(
        module,  # type: ignore[arg-type]
        "gaussian",
        block,
        seed=0,
        sums=values["sums"],
        not_finite=values["not_finite"],
    )
    ((name, passed),) = module.calls
    assert name == "cuda_gaussian_accumulate"
    assert passed["workspace"] != 0
    assert module.block["exp_avg"] == 0
    assert not {"exponents", "saturated", "sparsity"} & set(passed)


def dots_arguments(**changes: Tensor) -> dict[str, Tensor]:
    sums, flags = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.uint8)
    return {"directions": torch.ones(3, 7)[:, 2:5], "sums": sums, "not_finite": flags} | changes


def test_directions_reach_the_extension_with_their_stride(module: RecordingModule) -> None:
    values = dots_arguments()
    cuda.accumulate(module, "dots", raw_block(torch.ones(2, 3)), **values)  # type: ignore[arg-type]
    ((name, passed),) = module.calls
    assert name == "cuda_dots_accumulate"
    assert passed.pop("workspace") != 0
    addresses = {key: value.data_ptr() for key, value in values.items()}
    assert passed == {"dim": 4, "direction_stride": 7, "device": -1, "stream": 77, **addresses}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": torch.ones(2, 3)}, r"directions must be torch.float32 of shape \(3, 3\), got .* \(2, 3\)"),
        ({"directions": torch.ones(3, 3).double()}, "directions must be torch.float32"),
        ({"directions": torch.ones(3, 3).T[:, :]}, "values of a direction must be contiguous"),
        ({"directions": torch.ones(3, 3, device="meta")}, "directions are on meta, gradients on cpu"),
        ({"sums": torch.zeros(2, 4)}, "sums must be contiguous torch.float64"),
    ],
)
def test_directions_that_do_not_fit_are_refused(
    module: RecordingModule, changes: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ProjectionError, match=message):
        cuda.accumulate(module, "dots", raw_block(torch.ones(2, 3)), **dots_arguments(**changes))  # type: ignore[arg-type]
    assert module.calls == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sums": torch.zeros(2, 128)}, "sums must be contiguous torch.int64"),
        ({"sums": torch.zeros(3, 128, dtype=torch.int64)}, r"sums must be .* of shape \(2, 128\)"),
        ({"sums": torch.zeros(128, 2, dtype=torch.int64).T}, "with strides"),
        ({"exponents": torch.zeros(2, dtype=torch.int64)}, "exponents must be contiguous torch.int32"),
        ({"saturated": torch.zeros(1, dtype=torch.int64)}, "saturated must be"),
        ({"not_finite": torch.zeros(2, dtype=torch.uint8, device="meta")}, "not_finite is on meta, gradients on cpu"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(module: RecordingModule, changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ProjectionError, match=message):
        cuda.accumulate(module, "sjlt", raw_block(torch.ones(2, 3)), seed=0, **arguments(**changes))  # type: ignore[arg-type]
    assert module.calls == []


def test_rows_that_are_not_contiguous_are_refused(module: RecordingModule) -> None:
    with pytest.raises(ProjectionError, match="values of a row must be contiguous"):
        cuda.accumulate(module, "sjlt", raw_block(torch.ones(3, 2).T), seed=0, **arguments())  # type: ignore[arg-type]


def test_an_extension_without_cuda_says_so() -> None:
    module = SimpleNamespace(cuda_built=False)
    assert "built without CUDA" in cuda.problem(module, GPU)  # type: ignore[arg-type]


def test_the_extension_gives_a_reason_where_there_is_no_device() -> None:
    module = native.native_status().module
    if module is None:
        pytest.skip(native.native_status().reason)
    assert cuda.problem(module, torch.device("cuda", 999)) != ""


def test_a_device_that_cannot_be_used_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(cuda_built=True, cuda_problem=lambda device: "no driver")
    monkeypatch.setattr(native, "native_status", lambda: native.NativeStatus(module, ""))  # type: ignore[arg-type]
    native.announce.cache_clear()
    with pytest.warns(RuntimeWarning, match="sjlt projections run in plain torch.*: no driver"):
        assert native.kernel("sjlt", GPU) is None
    monkeypatch.setattr(module, "cuda_problem", lambda device: "")
    assert native.kernel("sjlt", GPU) is not None


def on_gpu(adam: AdamMoments | None) -> AdamMoments | None:
    return adam and replace(adam, exp_avg=adam.exp_avg.to(GPU), exp_avg_sq=adam.exp_avg_sq.to(GPU))


@pytest.fixture
def gpu_kernels() -> None:
    status = native.native_status()
    assert status.module is not None, status.reason
    assert cuda.problem(status.module, GPU) == ""


def agree(kind: str, found: Tensor, expected: Tensor) -> bool:
    if kind == "gaussian":
        return bool(((found - expected).norm(dim=1) <= 2e-5 * expected.norm(dim=1)).all())
    return torch.equal(found, expected)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian"])
@pytest.mark.parametrize("variant", [None, "adamw", "less", "second_moment"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "count", "dim"), [(1, 1_000_003, 4096), (7, 70_001, 1152), (33, 9_999, 8192)])
def test_gpu_features_are_those_of_the_cpu(
    kind: str, variant: AdamVariant | None, dtype: torch.dtype, rows: int, count: int, dim: int
) -> None:
    projector = Projector(dim, kind, seed=2**63 + 3)
    grads = gradients(rows, count).to(dtype)
    adam = None if variant is None else moments(count, variant)
    found = projector.project(grads.to(GPU), on_gpu(adam)).cpu()
    assert agree(kind, found, projector.project(grads, adam))


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian"])
def test_gpu_kernels_run_on_the_current_stream(kind: str) -> None:
    """A block that another stream fills late is read only then."""
    projector = Projector(1024, kind)
    grads = gradients(4, 200_000)
    expected = projector.project(grads)
    host, stream = grads.pin_memory(), torch.cuda.Stream(GPU)
    with torch.cuda.stream(stream):
        block = torch.zeros_like(grads, device=GPU)
        torch.cuda._sleep(200_000_000)  # cycles
        block.copy_(host, non_blocking=True)
        accumulator = projector.accumulator(4, device=GPU)
        accumulator.add(block, 0, None)
        found = accumulator.features()
    stream.synchronize()
    assert agree(kind, found.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian"])
def test_gpu_features_are_the_same_every_time(kind: str) -> None:
    projector = Projector(4096, kind)
    grads = gradients(9, 300_000).to(GPU)
    first = projector.project(grads)
    assert all(torch.equal(projector.project(grads), first) for _ in range(5))


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("kind", ["sjlt", "rademacher", "gaussian"])
def test_gpu_rows_that_are_not_finite_become_nan(kind: str) -> None:
    grads = gradients(3, 5000).to(GPU)
    grads[1, 77] = float("inf")
    features = Projector(256, kind).project(grads)
    assert features.isnan().all(dim=1).tolist() == [False, True, False]


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu_kernels")
@pytest.mark.parametrize("variant", [None, "adamw", "less", "second_moment"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "count", "number"), [(1, 1_000_003, 1), (7, 70_001, 8), (33, 9_999, 0), (4, 300, 77)])
def test_gpu_inner_products_have_the_bits_of_the_cpu(
    variant: AdamVariant | None, dtype: torch.dtype, rows: int, count: int, number: int
) -> None:
    grads, wanted = gradients(rows, count).to(dtype), torch.randn(number, count)
    adam = None if variant is None else moments(count, variant)

    def sums(device: torch.device, moments: AdamMoments | None) -> list[Tensor]:
        dots = DotAccumulator(wanted.to(device), rows, [(0, count)], device)
        dots.add(grads.to(device), 0, moments)
        return [part.cpu() for part in dots.result()]

    found, expected = sums(GPU, on_gpu(adam)), sums(torch.device("cpu"), adam)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
