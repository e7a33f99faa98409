from __future__ import annotations

import json

import pytest
import torch

from dataflex.errors import StoreError
from dataflex.store import FeatureStore


def filled(path, fingerprint=None, rows=10, dim=3, shard_rows=4):
    store = FeatureStore(path, fingerprint or {"state": "a", "projection": {"seed": 1}}, rows, dim, shard_rows)
    values = torch.arange(rows * dim, dtype=torch.float32).view(rows, dim)
    for start, stop in store.missing():
        store.write(start, values[start:stop])
    return store, values


def test_rows_come_back_as_written(tmp_path):
    store, values = filled(tmp_path / "s")
    assert store.shards == [(0, 4), (4, 8), (8, 10)]
    assert store.missing() == []
    assert torch.equal(store.load(), values)
    assert [start for start, _ in store.blocks()] == [0, 4, 8]


def test_a_store_goes_on_where_it_stopped(tmp_path):
    first = FeatureStore(tmp_path / "s", {"state": "a"}, 10, 3, 4)
    first.write(4, torch.ones(4, 3))
    again = FeatureStore(tmp_path / "s", {"state": "a"}, 10, 3, 4)
    assert again.missing() == [(0, 4), (8, 10)]
    with pytest.raises(StoreError, match="missing or damaged"):
        again.load()


@pytest.mark.parametrize("harm", ["truncate", "flip", "foreign"])
def test_damaged_shards_are_computed_again(tmp_path, harm, caplog):
    store, _ = filled(tmp_path / "s")
    file = sorted((tmp_path / "s").glob("features-*.safetensors"))[1]
    data = bytearray(file.read_bytes())
    if harm == "truncate":
        file.write_bytes(data[:-7])
    elif harm == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        other, _ = filled(tmp_path / "other", {"state": "b"})
        file.write_bytes(sorted(other.path.glob("features-*.safetensors"))[1].read_bytes())
    assert store.missing() == [(4, 8)]
    assert "damaged" in caplog.text
    assert not file.exists()


def test_another_fingerprint_is_never_reused(tmp_path, caplog):
    filled(tmp_path / "s")
    store = FeatureStore(tmp_path / "s", {"state": "a", "projection": {"seed": 2}}, 10, 3, 4)
    assert len(store.missing()) == 3
    assert "fingerprint.projection.seed differs: 1 on disk, 2 now" in caplog.text


def test_a_damaged_manifest_starts_over(tmp_path):
    filled(tmp_path / "s")
    (tmp_path / "s" / "manifest.json").write_text("{", encoding="utf-8")
    store, values = filled(tmp_path / "s")
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


def test_an_empty_store_is_complete(tmp_path):
    store = FeatureStore(tmp_path / "s", {}, 0, 3, 4)
    assert store.missing() == []
    assert store.load().shape == (0, 3)
    store.remove()
    assert not store.path.exists()
