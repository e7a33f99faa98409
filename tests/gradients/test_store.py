from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.errors import StoreError
from dataflex.gradients import store as store_module
from dataflex.gradients.filling import fill_store
from dataflex.gradients.layout import Layout, consecutive
from dataflex.gradients.store import FeatureStore
from dataflex.testing import tiny_model
from dataflex.utils.distributed import Ranks


def filled(path, fingerprint=None, rows=10, dim=3, shard_rows=4, dtype="float32"):
    store = FeatureStore(
        path, fingerprint or {"state": "a", "projection": {"seed": 1}}, consecutive(rows, shard_rows), dim, dtype
    )
    values = torch.arange(rows * dim, dtype=torch.float32).view(rows, dim)
    for start, stop in store.missing():
        store.write(start, values[start:stop])
    return store, values


def files_of(store):
    return sorted(store.path.glob("features-*.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rows_come_back_as_written(tmp_path, dtype):
    store, values = filled(tmp_path / "s", dtype=dtype)
    assert store.shards == [(0, 4), (4, 8), (8, 10)]
    assert store.missing() == []
    assert torch.equal(store.load(), values)
    assert [start for start, _ in store.blocks()] == [0]
    assert all(rows.dtype == getattr(torch, dtype) for _, rows in store.blocks())
    assert store.num_bytes == 30 * (4 if dtype == "float32" else 2)
    again, _ = filled(tmp_path / "s", dtype=dtype)
    assert torch.equal(again.load(), values)


def test_blocks_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "BLOCK_VALUES", 3 * 3)
    store, values = filled(tmp_path / "s")
    blocks = list(store.blocks())
    assert [(start, len(rows)) for start, rows in blocks] == [(0, 3), (3, 3), (6, 3), (9, 1)]
    assert torch.equal(torch.cat([rows for _, rows in blocks]), values)
    monkeypatch.setattr(store_module, "BLOCK_VALUES", 1)
    assert [len(rows) for _, rows in store.blocks()] == [1] * 10


def test_16_bits_round_to_nearest_and_keep_what_is_not_finite(tmp_path):
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 1e-20
    values[2, 5] = float("nan")
    store = FeatureStore(tmp_path / "s", {}, consecutive(4, 4), 64, "bfloat16")
    store.write(0, values)
    assert torch.equal(store.load()[:2], values[:2].bfloat16().float())
    assert store.load()[2].isnan().sum() == 1


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_rows_that_a_type_cannot_hold_are_refused(tmp_path, scale):
    store = FeatureStore(tmp_path / "s", {}, consecutive(4, 2), 8, "float16")
    store.write(0, torch.ones(2, 8))
    values = torch.ones(2, 8)
    values[1] *= scale / 10
    with pytest.raises(StoreError, match=r"1 rows, the first of them row 3, do not fit float16.*\n.*bfloat16"):
        store.write(2, values)
    assert store.missing() == [(2, 4)]
    store.write(2, torch.zeros(2, 8))
    assert store.missing() == []


@pytest.mark.parametrize("value", [1e30, 1e-23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_whose_squares_leave_float32_are_refused_too(tmp_path, value, dtype):
    """They were stored as inf and 0: a norm in float32 finds no difference."""
    store = FeatureStore(tmp_path / "s", {}, consecutive(2, 2), 8, "float16")
    with pytest.raises(StoreError, match="2 rows, the first of them row 0, do not fit float16"):
        store.write(0, torch.full((2, 8), value, dtype=dtype))
    assert store.missing() == [(0, 2)]


def test_float64_rows_that_float32_cannot_hold_are_refused(tmp_path):
    store = FeatureStore(tmp_path / "s", {}, consecutive(1, 1), 2)
    for value in (1e50, 1e-60):
        with pytest.raises(StoreError, match="do not fit float32"):
            store.write(0, torch.full((1, 2), value, dtype=torch.float64))
    store.write(0, torch.full((1, 2), 1e30, dtype=torch.float64))


def test_swapped_shards_are_found(tmp_path, caplog):
    store, values = filled(tmp_path / "s", rows=8)
    first, second = files_of(store)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    again = FeatureStore(tmp_path / "s", {"state": "a", "projection": {"seed": 1}}, consecutive(8, 4), 3)
    with pytest.raises(StoreError, match=r"holds other places: \[4, 8\]"):
        again.load()
    assert again.missing() == [(0, 4), (4, 8)]
    assert f"{first} is damaged: it holds other places: [4, 8]; its 4 rows are computed again" in caplog.text
    filled(tmp_path / "s", rows=8)
    assert torch.equal(again.load(), values[:8])


def test_a_store_of_an_earlier_format_is_computed_again_and_said(tmp_path, caplog):
    store, _ = filled(tmp_path / "s")
    manifest = json.loads((store.path / "manifest.json").read_text(encoding="utf-8"))
    (store.path / "manifest.json").write_text(json.dumps(manifest | {"format": 3}), encoding="utf-8")
    again = FeatureStore(tmp_path / "s", {"state": "a", "projection": {"seed": 1}}, consecutive(10, 4), 3)
    assert len(again.missing()) == 3
    assert "format differs: 3 on disk, 4 now" in caplog.text


def test_a_store_goes_on_where_it_stopped(tmp_path):
    first = FeatureStore(tmp_path / "s", {"state": "a"}, consecutive(10, 4), 3)
    first.write(4, torch.ones(4, 3))
    again = FeatureStore(tmp_path / "s", {"state": "a"}, consecutive(10, 4), 3)
    assert again.missing() == [(0, 4), (8, 10)]
    with pytest.raises(StoreError, match=r"00000000-00000004\.safetensors is missing"):
        again.load()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("truncate", "it cannot be read (SafetensorError"),
        ("empty", "it cannot be read (SafetensorError"),
        ("flip", "it holds values that do not match their checksum"),
        ("foreign", "it belongs to another store"),
        ("name", "it cannot be read (SafetensorError"),
    ],
)
@pytest.mark.parametrize("reopened", [False, True])
def test_damaged_shards_are_named_and_computed_again(tmp_path, harm, message, reopened, caplog):
    store, _ = filled(tmp_path / "s")
    file = files_of(store)[1]
    data = bytearray(file.read_bytes())
    if harm == "truncate":
        file.write_bytes(data[:-7])
    elif harm == "empty":
        file.write_bytes(b"")
    elif harm == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif harm == "foreign":
        other, _ = filled(tmp_path / "other", {"state": "b"})
        file.write_bytes(files_of(other)[1].read_bytes())
    else:
        file.write_bytes(data.replace(b'"features"', b'"featurez"'))
    if reopened:
        store = FeatureStore(tmp_path / "s", {"state": "a", "projection": {"seed": 1}}, consecutive(10, 4), 3)
    with pytest.raises(StoreError, match=r"00000004-00000008.safetensors .*"):
        store.load()
    assert store.missing() == [(4, 8)]
    assert f"{file} is damaged: {message}" in caplog.text
    assert "its 4 rows are computed again" in caplog.text
    assert not file.exists()


@given(st.data())
def test_every_flipped_bit_is_found(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("store")
    store, values = filled(folder / "s", rows=2, shard_rows=2)
    [file] = files_of(store)
    whole = file.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(changed)
    again = FeatureStore(folder / "s", {"state": "a", "projection": {"seed": 1}}, consecutive(2, 2), 3)
    assert again.missing() == [(0, 2)]
    again.write(0, values)
    assert file.read_bytes() == whole


def test_another_fingerprint_is_never_reused(tmp_path, caplog):
    filled(tmp_path / "s")
    store = FeatureStore(tmp_path / "s", {"state": "c", "projection": {"seed": 2}}, consecutive(10, 4), 3, "bfloat16")
    assert len(store.missing()) == 3
    assert "fingerprint.projection.seed differs: 1 on disk, 2 now" in caplog.text
    assert "fingerprint.state differs: 'a' on disk, 'c' now" in caplog.text
    assert "dtype differs: 'float32' on disk, 'bfloat16' now" in caplog.text
    assert "num_rows" not in caplog.text


def test_a_damaged_manifest_starts_over(tmp_path, caplog):
    filled(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text("{", encoding="utf-8")
    store, values = filled(tmp_path / "s")
    assert "the manifest is damaged" in caplog.text
    assert torch.equal(store.load(), values)
    assert json.loads((tmp_path / "s" / "manifest.json").read_text(encoding="utf-8"))["num_rows"] == 10


def test_only_planned_shards_are_written(tmp_path):
    store = FeatureStore(tmp_path / "s", {}, consecutive(10, 4), 3)
    with pytest.raises(StoreError, match="places 1:5 with 3 features are no shard"):
        store.write(1, torch.ones(4, 3))
    with pytest.raises(StoreError, match="with 2 features"):
        store.write(0, torch.ones(4, 2))
    with pytest.raises(StoreError, match="at least one row"):
        FeatureStore(tmp_path / "t", {}, consecutive(10, 0), 3)


def test_an_empty_store_is_complete(tmp_path):
    store = FeatureStore(tmp_path / "s", {}, consecutive(0, 4), 3)
    assert store.missing() == []
    assert store.load().shape == (0, 3)
    store.remove()
    assert not store.path.exists()


SCATTERED = Layout(np.array([5, 0, 3, 6, 1, 4, 2]), np.array([0, 2, 3, 5, 7]), np.array([0, 3, 7]))
"""Two shards of two batches each."""


def rows_of(numbers):
    return torch.tensor([[row, -row] for row in numbers], dtype=torch.float32)


def filled_until(path, stop, *, save_rows, layout=SCATTERED):
    """Fill a store in a run that is killed when so many rows have been computed; returns the rows that were."""
    computed = []

    def compute(rows):
        if len(computed) >= stop:
            raise KeyboardInterrupt
        computed.extend(rows)
        return rows_of(rows)

    store = FeatureStore(path, {}, layout, 2)
    with suppress(KeyboardInterrupt):
        fill_store(store, tiny_model(), compute, description="x", save_rows=save_rows, ranks=Ranks())
    return computed


def test_stores_are_filled_in_batches_and_read_in_the_order_of_rows(tmp_path):
    store = FeatureStore(tmp_path / "s", {}, SCATTERED, 2)
    store.write(0, rows_of([5, 0, 3]))
    seen = []

    def compute(rows):
        seen.append(rows)
        return rows_of(rows)

    fill_store(store, tiny_model(), compute, description="x", ranks=Ranks())
    assert seen == [[6, 1], [4, 2]]
    assert torch.equal(store.load(), rows_of(range(7)))
    assert torch.equal(store.read((3, 7)), rows_of([6, 1, 4, 2]))


@pytest.mark.parametrize("save_rows", [1, 2, 3, 16])
@pytest.mark.parametrize("killed_after", [1, 9, 16, 29])
def test_a_kill_loses_no_more_rows_than_may_be_lost(tmp_path, save_rows, killed_after):
    """Batches of up to three rows in shards of ten: with what a kill may lose below and above both."""
    order = np.random.default_rng(0).permutation(30)
    layout = Layout(order, np.array([0, 2, 5, 8, 10, 11, 14, 17, 20, 23, 26, 28, 30]), np.array([0, 10, 20, 30]))
    before = filled_until(tmp_path, killed_after, save_rows=save_rows, layout=layout)
    after = filled_until(tmp_path, 30, save_rows=save_rows, layout=layout)
    assert set(before) | set(after) == set(range(30))
    assert len(set(before) & set(after)) <= max(save_rows - 1, 0)
    assert torch.equal(FeatureStore(tmp_path, {}, layout, 2).load(), rows_of(range(30)))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("harm", ["torn", "flipped", "foreign"])
def test_rows_that_were_written_down_and_damaged_are_computed_again(tmp_path, harm):
    layout = Layout(np.arange(6), np.arange(7), np.array([0, 6]))
    filled_until(tmp_path, 4, save_rows=1, layout=layout)
    [file] = tmp_path.glob("*.part")
    data = bytearray(file.read_bytes())
    kept = {"torn": 3, "flipped": 2, "foreign": 0}[harm]
    if harm == "torn":
        data = data[:-3]
    elif harm == "flipped":
        data[-17] ^= 1  # the end of the third of four records of 8 + 8 bytes
    else:
        data[3] ^= 1
    file.write_bytes(data)
    assert filled_until(tmp_path, 6, save_rows=1, layout=layout) == list(range(kept, 6))
    assert torch.equal(FeatureStore(tmp_path, {}, layout, 2).load(), rows_of(range(6)))


def test_what_was_written_down_of_a_shard_that_is_complete_goes(tmp_path):
    filled_until(tmp_path, 2, save_rows=1)
    [file] = tmp_path.glob("*.part")
    kept = file.read_bytes()
    filled_until(tmp_path, 7, save_rows=1)
    file.write_bytes(kept)  # killed between the two
    assert filled_until(tmp_path, 7, save_rows=1) == []
    assert not file.exists()
