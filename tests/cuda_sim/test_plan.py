"""How jobs are divided among thread blocks: everything once, within the limits of the hardware and of 32-bit sums."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuda_sim.harness import Emulator

SIZES = {
    "rows": st.integers(1, 70),
    "offset": st.integers(0, 2**41),
    "count": st.integers(1, 2**34),
    "multiprocessors": st.sampled_from([1, 8, 108, 132]),
}
# The emulator is only asked for numbers: that it is one for all examples does not matter.
FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FEW
@given(**SIZES, steps=st.integers(1, 4000))
def test_sjlt(emulator: Emulator, rows: int, offset: int, count: int, multiprocessors: int, steps: int) -> None:
    dim = 16 * steps
    plan = emulator.plan("sjlt", rows, offset, count, dim, multiprocessors)
    assert plan["rows"] in (1, 2, 4)
    assert (plan["row_tiles"] - 1) * plan["rows"] < rows <= plan["row_tiles"] * plan["rows"]
    assert (plan["windows"] - 1) * plan["window"] < dim <= plan["windows"] * plan["window"]
    assert plan["window"] % 16 == 0
    assert plan["batches"] * 128 >= count + offset % 16
    assert (plan["splits"] - 1) * plan["batches_per_split"] < plan["batches"]
    assert plan["batches"] <= plan["splits"] * plan["batches_per_split"]
    assert plan["shared_bytes"] == 4 * plan["rows"] * plan["window"] <= 64 << 10


@FEW
@given(**SIZES, dim=st.integers(1, 2**20))
def test_rademacher(emulator: Emulator, rows: int, offset: int, count: int, multiprocessors: int, dim: int) -> None:
    rows = min(rows, 32)
    plan = emulator.plan("rademacher", rows, offset, count, dim, multiprocessors)
    assert plan["row_tiles"] in (1, 2, 4)
    assert rows <= 8 * plan["row_tiles"]
    assert plan["spans"] == math.ceil((offset + count) / 128) - offset // 128
    assert plan["output_tiles"] * (2 if plan["row_tiles"] == 4 else 4) * 256 >= dim
    assert 1 <= plan["splits"] <= plan["chunk_spans"] <= plan["spans"]
    assert plan["workspace_bytes"] == plan["chunk_spans"] * plan["row_tiles"] * 2048 + plan["row_tiles"] * 64
    assert plan["workspace_bytes"] <= (32 << 20) + 256
    # 128 * 255 is the most that a span adds to a sum of low bytes.
    assert plan["chunk_spans"] * 128 * 255 < 2**31


@FEW
@given(**SIZES, dim=st.integers(1, 2**17))
def test_gaussian(emulator: Emulator, rows: int, offset: int, count: int, multiprocessors: int, dim: int) -> None:
    plan = emulator.plan("gaussian", rows, offset, count, dim, multiprocessors)
    assert plan["row_tiles"] == math.ceil(rows / 32)
    assert plan["output_tiles"] == math.ceil(dim / 64)
    assert plan["steps"] == math.ceil((offset + count) / 32) - offset // 32
    assert (plan["splits"] - 1) * plan["steps_per_split"] < plan["steps"] <= plan["splits"] * plan["steps_per_split"]
    assert plan["workspace_bytes"] == 8 * plan["splits"] * rows * dim
    assert plan["workspace_bytes"] <= max(8 << 20, 8 * rows * dim)
    assert plan == emulator.plan("gaussian", rows, offset, count, dim, 7), "the device's size must not matter"


@FEW
@given(**SIZES, number=st.integers(0, 2000))
def test_dots(emulator: Emulator, rows: int, offset: int, count: int, multiprocessors: int, number: int) -> None:
    plan = emulator.plan("dots", rows, offset, count, 1 + number, multiprocessors)
    assert plan["rows"] in (1, 4)
    assert (plan["row_tiles"] - 1) * plan["rows"] < rows <= plan["row_tiles"] * plan["rows"]
    assert plan["directions"] == (1 if number <= 1 else 8)
    assert plan["direction_tiles"] == max(1, math.ceil(number / plan["directions"]))
    assert 1 <= plan["pieces"] <= math.ceil(count / 4096)
    assert plan["workspace_bytes"] == 8 * plan["pieces"] * rows * (1 + number)
    assert plan["workspace_bytes"] <= max(8 << 20, 8 * rows * (1 + number))
    assert plan["workspace_bytes"] == emulator.plan("dots", rows, offset, count, 1 + number, 1)["workspace_bytes"]


@pytest.mark.parametrize(("dim", "rows", "tile"), [(4096, 32, 4), (8192, 32, 2), (16384, 32, 1), (4096, 1, 1)])
def test_sjlt_tiles(emulator: Emulator, dim: int, rows: int, tile: int) -> None:
    assert emulator.plan("sjlt", rows, 0, 10**6, dim, 132)["rows"] == tile
