from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dataflex.projection.adam import AdamVariant
from dataflex.projection.kernels import native
from dataflex.projection.kernels.native import native_status
from dataflex.projection.projector import Projector
from helpers.philox import KNOWN_ANSWERS
from helpers.projections import gradients, moments, torch_only

kernels = native_status().module
needs_native = pytest.mark.skipif(kernels is None, reason=f"no native kernels: {native_status().reason}")


@pytest.fixture(autouse=True)
def fresh_status() -> Iterator[None]:
    native_status.cache_clear()
    yield
    native_status.cache_clear()


def arguments(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "grads": np.ones((2, 5), np.float32),
        "type": "float32",
        "offset": 0,
        "variant": "adamw",
        "constants": (0.5,) * 7,
        "exp_avg": np.ones(5, np.float32),
        "exp_avg_sq": np.ones(5, np.float32),
        "exponents": np.zeros(2, np.int32),
        "seed": 0,
        "sparsity": 8,
        "sums": np.zeros((2, 128), np.int64),
        "not_finite": np.zeros(2, np.uint8),
        "saturated": np.zeros(2, np.int64),
        "threads": 1,
    }
    return values | changes


@needs_native
@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(kernels.philox4x32(counter, key)) == expected


@needs_native
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "int8"}, "grads do not hold values of type int8"),
        ({"type": "bfloat16"}, "grads do not hold values of type bfloat16"),
        ({"grads": np.ones((2, 5), np.int16), "type": "float32"}, "grads do not hold values of type float32"),
        ({"grads": np.ones((2, 5), np.int16), "type": "int16"}, "unknown value type int16"),
        ({"grads": np.ones(5, np.float32)}, "must have two dimensions"),
        ({"grads": np.ones((5, 2), np.float32).T}, "a row of grads must be contiguous"),
        ({"sums": np.zeros((3, 128), np.int64)}, "totals and grads differ in rows"),
        ({"exponents": np.zeros(3, np.int32)}, "per-row arrays and grads differ in rows"),
        ({"not_finite": np.zeros((2, 1), np.uint8)}, "per-row arrays and grads differ in rows"),
        ({"saturated": np.zeros(1, np.int64)}, "per-row arrays and grads differ in rows"),
        ({"exponents": np.full(2, 128, np.int32)}, r"exponents must be in \[-126, 127\]"),
        ({"sums": np.zeros((2, 100), np.int64)}, "dim must be a multiple of 16"),
        ({"sparsity": 0}, "dim must be a multiple of 16"),
        ({"offset": -1}, "offset is out of range"),
        ({"offset": 2**62}, "offset is out of range"),
        ({"variant": "sgd"}, "unknown Adam variant sgd"),
        ({"exp_avg": np.ones(4, np.float32)}, "moments must have one value a column of grads"),
        ({"exp_avg_sq": None}, "moments must have one value a column of grads"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.sjlt_accumulate(**arguments(**changes))


@needs_native
@pytest.mark.parametrize(
    "changes",
    [
        {"sums": np.zeros((2, 128), np.int32)},
        {"sums": np.zeros((128, 2), np.int64).T},
        {"exponents": np.zeros(2, np.int64)},
        {"exp_avg": np.ones(5, np.float64)},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_arguments_are_never_converted(changes: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="incompatible function arguments"):
        kernels.sjlt_accumulate(**arguments(**changes))


@needs_native
def test_read_only_results_are_refused() -> None:
    values = arguments()
    values["sums"].flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        kernels.sjlt_accumulate(**values)


@needs_native
def test_results_are_added_to() -> None:
    values = arguments(variant="none", exponents=np.array([0, 127], np.int32))
    kernels.sjlt_accumulate(**values)
    once = values["sums"].copy()
    kernels.sjlt_accumulate(**values)
    assert np.array_equal(values["sums"], 2 * once)
    assert np.abs(once[0]).sum() <= 5 * 8
    assert values["saturated"].tolist() == [0, 10]
    assert values["not_finite"].tolist() == [0, 0]


@needs_native
def test_status_names_the_extension() -> None:
    assert native_status().module is kernels
    assert native_status().reason.endswith(".so")


def test_environment_turns_the_extension_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLEX_NATIVE", "0")
    assert native_status() == native.NativeStatus(None, "DATAFLEX_NATIVE=0")


def test_a_missing_extension_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dataflex._native", None)
    status = native_status()
    assert status.module is None
    assert "ModuleNotFoundError" in status.reason


def test_a_stale_extension_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    stale = SimpleNamespace(API_VERSION=native.API_VERSION - 1, __file__="old.so")

    def stale_import(name: str) -> ModuleType | SimpleNamespace:
        return stale if name == "dataflex._native" else importlib.__import__(name)

    monkeypatch.setattr(native.importlib, "import_module", stale_import)
    status = native_status()
    assert status.module is None
    assert f"old.so was built for version {native.API_VERSION - 1}" in status.reason
    assert "reinstall dataflex-sdk" in status.reason


@needs_native
@pytest.mark.parametrize("variant", [None, "adamw", "less", "second_moment"])
@pytest.mark.parametrize(("rows", "count", "offset", "sparsity"), [(1, 9000, 3, 8), (7, 4001, 16, 3), (33, 250, 0, 1)])
def test_every_instruction_set_gives_the_bits_of_the_reference(
    isa: str, rows: int, count: int, offset: int, sparsity: int, variant: AdamVariant | None
) -> None:
    projector = Projector(16 * sparsity * 5, seed=11, sparsity=sparsity)
    grads = gradients(rows, count)
    adam = None if variant is None else moments(count, variant)

    def features() -> Tensor:
        accumulator = projector.accumulator(rows)
        accumulator.add(grads, offset, adam)
        return accumulator.features()

    found = features()
    with torch_only():
        assert torch.equal(found, features())


@needs_native
def test_an_unknown_instruction_set_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAFLEX_ISA", "sse9")
    with pytest.raises(ValueError, match=r"DATAFLEX_ISA is 'sse9'; this processor has: .*portable"):
        Projector(128).project(torch.ones(1, 16))
