from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.errors import SelectionError
from dataflex.gradients import turns
from dataflex.gradients.similarity import Influence, influence_scores
from dataflex.gradients.turns import choose, take_turns


def naive(cosines: np.ndarray, count: int, order: list[int]) -> list[int]:
    """One candidate a turn, looked for among all that are left."""
    taken: list[int] = []
    for turn in range(count):
        column = cosines[:, order[turn % len(order)]].copy()
        column[taken] = -np.inf
        taken.append(int(np.argmax(column)))  # the first of equal ones
    return taken


def stream(cosines: np.ndarray, size: int):
    tensor = torch.from_numpy(cosines)
    return lambda: ((start, tensor[start : start + size]) for start in range(0, len(tensor), size))


@given(
    n=st.integers(1, 40),
    q=st.integers(1, 7),
    share=st.floats(0, 1),
    size=st.integers(1, 11),
    levels=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_it_is_the_naive_loop_with_ties_in_any_block(n, q, share, size, levels, seed):
    random = np.random.default_rng(seed)
    cosines = random.integers(0, levels, (n, q)) / levels  # few levels: many ties
    count = max(1, int(share * n))
    order = random.permutation(q)
    assert take_turns(stream(cosines, size), n, count, order).tolist() == naive(cosines, count, order.tolist())


def test_lists_grow_where_the_targets_want_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SPARE", 0)
    column = np.random.default_rng(0).permutation(60) / 60
    cosines = np.repeat(column[:, None], 5, axis=1)  # five targets with one taste
    passes = []

    def counted():
        passes.append(1)
        return stream(cosines, 7)()

    found = take_turns(counted, 60, 30, np.arange(5))
    assert found.tolist() == np.argsort(-column, kind="stable")[:30].tolist()
    assert len(passes) > 1


def test_candidates_that_cannot_be_used_are_not_taken() -> None:
    cosines = np.array([[0.1, 0.9], [-np.inf, -np.inf], [0.3, 0.2]])
    assert take_turns(stream(cosines, 2), 3, 2, np.arange(2)).tolist() == [2, 0]
    with pytest.raises(SelectionError, match="3 samples are to be selected and 2 of 3 candidates have a usable score"):
        take_turns(stream(cosines, 2), 3, 3, np.arange(2))


def test_a_target_without_a_direction_has_no_turn() -> None:
    """An evaluation row whose gradient is zero."""
    features = torch.from_numpy(np.random.default_rng(0).standard_normal((20, 8)))
    directions = torch.eye(3, 8, dtype=torch.float64)
    directions[1] = 0

    def parts() -> list[Influence]:
        return [Influence([(0, features[:9]), (9, features[9:])], directions)]

    found = choose(parts, influence_scores(parts(), 20), 6, "round_robin", (1, 2))
    cosines = np.stack(
        [influence_scores([Influence([(0, features)], directions[[row]])], 20).values for row in (0, 2)], axis=1
    )
    assert found.tolist() in (naive(cosines, 6, [0, 1]), naive(cosines, 6, [1, 0]))
