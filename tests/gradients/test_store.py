from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.errors import StoreError
from dataflex.gradients import store as store_module
from dataflex.gradients.filling import fill_store
from dataflex.gradients.store import FeatureStore
from dataflex.testing import tiny_model
from dataflex.utils.distributed import Ranks


def filled(path, fingerprint=None, rows=10, dim=3, shard_rows=4, dtype="float32"):
    store = FeatureStore(path, fingerprint or {"state": "a", "projection": {"seed": 1}}, rows, dim, shard_rows, dtype)
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
    assert [start for start, _ in store.blocks()] == [0, 4, 8]
    assert all(rows.dtype == getattr(torch, dtype) for _, rows in store.blocks())
    assert store.num_bytes == 30 * (4 if dtype == "float32" else 2)
    again, _ = filled(tmp_path / "s", dtype=dtype)
    assert torch.equal(again.load(), values)


def test_blocks_are_bounded_and_follow_the_plan(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "BLOCK_VALUES", 3 * 3)
    store, values = filled(tmp_path / "s")
    blocks = list(store.blocks())
    assert [(start, len(rows)) for start, rows in blocks] == [(0, 3), (3, 1), (4, 3), (7, 1), (8, 2)]
    assert torch.equal(torch.cat([rows for _, rows in blocks]), values)
    monkeypatch.setattr(store_module, "BLOCK_VALUES", 1)
    assert [len(rows) for _, rows in store.blocks()] == [1] * 10


def test_16_bits_round_to_nearest_and_keep_what_is_not_finite(tmp_path):
    values = torch.randn(4, 64, generator=torch.Generator().manual_seed(0)) * 1e-20
    values[2, 5] = float("nan")
    store = FeatureStore(tmp_path / "s", {}, 4, 64, 4, "bfloat16")
    store.write(0, values)
    assert torch.equal(store.load()[:2], values[:2].bfloat16().float())
    assert store.load()[2].isnan().sum() == 1


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_rows_that_a_type_cannot_hold_are_refused(tmp_path, scale):
    store = FeatureStore(tmp_path / "s", {}, 4, 8, 2, "float16")
    store.write(0, torch.ones(2, 8))
    values = torch.ones(2, 8)
    values[1] *= scale / 10
    with pytest.raises(StoreError, match=r"1 rows from row 3 on do not fit float16.*\n.*bfloat16"):
        store.write(2, values)
    assert store.missing() == [(2, 4)]
    store.write(2, torch.zeros(2, 8))
    assert store.missing() == []


@pytest.mark.parametrize("value", [1e30, 1e-23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_whose_squares_leave_float32_are_refused_too(tmp_path, value, dtype):
    """They were stored as inf and 0: a norm in float32 finds no difference."""
    store = FeatureStore(tmp_path / "s", {}, 2, 8, 2, "float16")
    with pytest.raises(StoreError, match="2 rows from row 0 on do not fit float16"):
        store.write(0, torch.full((2, 8), value, dtype=dtype))
    assert store.missing() == [(0, 2)]


def test_float64_rows_that_float32_cannot_hold_are_refused(tmp_path):
    store = FeatureStore(tmp_path / "s", {}, 1, 2, 1)
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
    again = FeatureStore(tmp_path / "s", {"state": "a", "projection": {"seed": 1}}, 8, 3, 4)
    with pytest.raises(StoreError, match=r"holds other rows: \[4, 8\]"):
        again.load()
    assert again.missing() == [(0, 4), (4, 8)]
    assert f"{first} is damaged: it holds other rows: [4, 8]; rows 0 to 3 are computed again" in caplog.text
    filled(tmp_path / "s", rows=8)
    assert torch.equal(again.load(), values[:8])


def test_a_store_of_an_earlier_format_is_computed_again_and_said(tmp_path, caplog):
    store, _ = filled(tmp_path / "s")
    manifest = json.loads((store.path / "manifest.json").read_text(encoding="utf-8"))
    (store.path / "manifest.json").write_text(json.dumps(manifest | {"format": 2}), encoding="utf-8")
    again = FeatureStore(tmp_path / "s", {"state": "a", "projection": {"seed": 1}}, 10, 3, 4)
    assert len(again.missing()) == 3
    assert "format differs: 2 on disk, 3 now" in caplog.text


def test_a_store_goes_on_where_it_stopped(tmp_path):
    first = FeatureStore(tmp_path / "s", {"state": "a"}, 10, 3, 4)
    first.write(4, torch.ones(4, 3))
    again = FeatureStore(tmp_path / "s", {"state": "a"}, 10, 3, 4)
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
        store = FeatureStore(tmp_path / "s", {"state": "a", "projection": {"seed": 1}}, 10, 3, 4)
    with pytest.raises(StoreError, match=r"00000004-00000008.safetensors .*"):
        store.load()
    assert store.missing() == [(4, 8)]
    assert f"{file} is damaged: {message}" in caplog.text
    assert "rows 4 to 7 are computed again" in caplog.text
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
    again = FeatureStore(folder / "s", {"state": "a", "projection": {"seed": 1}}, 2, 3, 2)
    assert again.missing() == [(0, 2)]
    again.write(0, values)
    assert file.read_bytes() == whole


def test_another_fingerprint_is_never_reused(tmp_path, caplog):
    filled(tmp_path / "s")
    store = FeatureStore(tmp_path / "s", {"state": "c", "projection": {"seed": 2}}, 10, 3, 4, "bfloat16")
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
    store = FeatureStore(tmp_path / "s", {}, 10, 3, 4)
    with pytest.raises(StoreError, match="rows 1:5 with 3 features are no shard"):
        store.write(1, torch.ones(4, 3))
    with pytest.raises(StoreError, match="with 2 features"):
        store.write(0, torch.ones(4, 2))
    with pytest.raises(StoreError, match="at least one row"):
        FeatureStore(tmp_path / "t", {}, 10, 3, 0)


@given(rows=st.integers(1, 40), shard_rows=st.integers(1, 12), start=st.integers(-3, 45), count=st.integers(1, 14))
def test_which_rows_are_a_shard_is_arithmetic(rows, shard_rows, start, count):
    store = FeatureStore.__new__(FeatureStore)
    store.num_rows, store.shard_rows = rows, shard_rows
    assert store._planned((start, start + count)) == ((start, start + count) in store.shards)


def test_an_empty_store_is_complete(tmp_path):
    store = FeatureStore(tmp_path / "s", {}, 0, 3, 4)
    assert store.missing() == []
    assert store.load().shape == (0, 3)
    store.remove()
    assert not store.path.exists()


def test_stores_are_filled_shard_by_shard_in_batches(tmp_path):
    model = tiny_model()
    store = FeatureStore(tmp_path / "s", {}, 7, 2, 4)
    store.write(4, torch.zeros(3, 2))
    seen = []

    def compute(rows):
        seen.append(list(rows))
        return torch.tensor([[row, -row] for row in rows], dtype=torch.float32)

    fill_store(store, model, compute, description="x", batches=lambda rows: [rows[::2], rows[1::2]], ranks=Ranks())
    assert seen == [[0, 2], [1, 3]]
    assert store.load()[:4].tolist() == [[0, 0], [1, -1], [2, -2], [3, -3]]
