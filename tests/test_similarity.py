from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.errors import SelectionError
from dataflex.similarity import cosine_scores, normalized_rows, target_directions, top_k


def cosines(candidates, targets):
    """(n, q) cosines in float64, formed in full."""
    a = candidates.double() / candidates.double().norm(dim=1, keepdim=True)
    b = targets.double() / targets.double().norm(dim=1, keepdim=True)
    return a @ b.T


def blocks(features, size):
    return [(start, features[start : start + size]) for start in range(0, len(features), size)]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_scores_equal_the_full_matrix(size):
    torch.manual_seed(size)
    candidates, targets = torch.randn(17, 8), torch.randn(5, 8)
    full = cosines(candidates, targets)
    tasks = ["a", "b", "a", "b", "b"]
    by_task = torch.stack([full[:, [0, 2]].mean(dim=1), full[:, [1, 3, 4]].mean(dim=1)], dim=1)
    expected = {"mean": full.mean(dim=1), "max": full.amax(dim=1), "task_max": by_task.amax(dim=1)}
    for aggregate, reference in expected.items():
        directions = target_directions(targets, aggregate, tasks)
        found = cosine_scores(reversed(blocks(candidates, size)), directions, 17)
        np.testing.assert_allclose(found, reference.numpy(), rtol=0, atol=1e-12)


def test_zero_and_broken_rows():
    candidates = torch.tensor([[1.0, 0.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [0.0, 2.0]])
    scores = cosine_scores([(0, candidates)], target_directions(torch.tensor([[3.0, 0.0]])), 6)
    assert scores.tolist() == [1.0, -np.inf, -np.inf, -np.inf, 0.0, -np.inf]
    zero_target = target_directions(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    assert zero_target.tolist() == [[0.5, 0.0]]


def test_targets_must_be_usable():
    with pytest.raises(SelectionError, match="no evaluation sample"):
        target_directions(torch.zeros((0, 4)))
    with pytest.raises(SelectionError, match="not finite"):
        target_directions(torch.tensor([[float("nan"), 1.0]]))
    with pytest.raises(SelectionError, match="task_max"):
        target_directions(torch.ones(2, 4), "task_max", ["a", None])


def test_scale_of_a_row_does_not_matter():
    rows = torch.randn(4, 6, dtype=torch.float64)
    scaled = rows * torch.tensor([[1e-30], [1.0], [1e30], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(normalized_rows(scaled), normalized_rows(rows))


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0, float("-inf")]), min_size=1, max_size=30), st.data())
def test_top_k_is_a_stable_sort(values, data):
    scores = np.array(values)
    usable = int((scores > -np.inf).sum())
    count = data.draw(st.integers(0, usable))
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert top_k(scores, count).tolist() == expected
    with pytest.raises(SelectionError, match="usable score"):
        top_k(scores, usable + 1)
