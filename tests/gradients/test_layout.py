from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.errors import StoreError
from dataflex.gradients import layout as layout_module
from dataflex.gradients.layout import by_length, consecutive, padding

MANY = st.lists(st.integers(1, 50), max_size=60)


@given(
    lengths=MANY,
    budget=st.integers(1, 200),
    kinds=st.integers(1, 3),
    window=st.sampled_from([1, 7, 100]),
    shards=st.sampled_from([1, 4, 100]),
)
def test_batches_keep_to_the_budget_and_lose_no_row(lengths, budget, kinds, window, shards):
    count = len(lengths)
    rows = [1 + number % 3 for number in range(count)]
    classes = [(number % kinds,) for number in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "WINDOW_ROWS", window)
        patch.setattr(layout_module, "SHARDS", shards)
        found = by_length(np.array(lengths, int), budget, rows=np.array(rows, int), classes=classes)
    batches = list(found.rows_of())
    assert sorted(row for batch in batches for row in batch) == list(range(count))
    for batch in batches:
        padded = sum(rows[row] for row in batch) * max(lengths[row] for row in batch)
        assert padded <= budget or len(batch) == 1
        assert len({classes[row] for row in batch}) == 1
    starts = found.shards.tolist()
    assert set(starts) <= set(found.batches.tolist())
    assert starts == sorted(set(starts))
    inside = [found.rows_of(start, stop) for start, stop in pairwise(starts)]
    assert [batch for shard in inside for batch in shard] == batches
    assert np.array_equal(found.order[found.places()], np.arange(count))


def lengths_of(count: int) -> np.ndarray:
    """Of instructions and answers: a few long ones, 237 tokens on average."""
    return np.clip(np.random.default_rng(0).lognormal(5.3, 0.6, count), 20, 2048).astype(np.int64)


@pytest.mark.parametrize(("count", "budget"), [(2_000, 2048), (30_000, 2048), (30_000, 16384)])
def test_padding_adds_next_to_nothing(count, budget):
    lengths = lengths_of(count)
    assert padding(by_length(lengths, budget), lengths) < 0.03


def test_shards_cost_the_same_and_hold_thousands_of_rows_where_there_are_many():
    lengths = lengths_of(300_000)
    found = by_length(lengths, 2048)
    sizes = np.diff(found.shards)
    assert len(sizes) == layout_module.SHARDS
    assert sizes.min() > 2000
    tokens = np.add.reduceat(lengths[found.order], found.shards[:-1])
    assert tokens.max() < 1.05 * tokens.mean()
    assert np.diff(by_length(np.full(1_100_000, 200), 2048).shards).max() <= layout_module.MOST_SHARD_ROWS


def test_a_layout_is_known_by_its_digest():
    lengths = lengths_of(100)
    assert by_length(lengths, 500).digest == by_length(lengths.copy(), 500).digest
    assert len({by_length(lengths, 500).digest, by_length(lengths, 700).digest, consecutive(100, 10).digest}) == 3


def test_rows_in_their_order():
    found = consecutive(10, 4)
    assert list(found.rows_of()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(found.rows_of(4, 8)) == [[4, 5, 6, 7]]
    assert list(consecutive(0, 4).rows_of()) == []
    with pytest.raises(StoreError, match="at least one row"):
        consecutive(10, 0)
