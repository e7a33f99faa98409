from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.errors import SelectionError
from dataflex.gradients.similarity import (
    Influence,
    influence_scores,
    normalized_rows,
    target_directions,
    top_k,
    unusual_rows,
)


def cosines(candidates, targets):
    """(n, q) cosines in float64, formed in full."""
    a = candidates.double() / candidates.double().norm(dim=1, keepdim=True)
    b = targets.double() / targets.double().norm(dim=1, keepdim=True)
    return a @ b.T


def blocks(features, size=4):
    return [(start, features[start : start + size]) for start in range(0, len(features), size)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 3, 100])
def test_scores_equal_the_full_matrix(size, dtype):
    torch.manual_seed(size)
    candidates, targets = torch.randn(17, 8).to(dtype), torch.randn(5, 8).to(dtype)
    full = cosines(candidates, targets)
    tasks = ["b", "a", "b", "a", "a"]
    by_task = torch.stack([full[:, [0, 2]].mean(dim=1), full[:, [1, 3, 4]].mean(dim=1)], dim=1)
    expected = {"mean": full.mean(dim=1), "max": full.amax(dim=1), "task_max": by_task.amax(dim=1)}
    for aggregate, reference in expected.items():
        directions = target_directions(blocks(targets, size), aggregate, tasks)
        found = influence_scores([Influence(blocks(candidates, size), directions)], 17)
        np.testing.assert_allclose(found.values, reference.numpy(), rtol=0, atol=1e-12)
        assert found.not_finite == found.zero == []


def test_states_are_summed_before_the_maximum_over_tasks():
    torch.manual_seed(0)
    states = [(torch.randn(11, 6), torch.randn(4, 6)) for _ in range(3)]
    weights, tasks = [0.5, 0.3, 0.2], ["a", "a", "b", "b"]
    full = sum(weight * cosines(*state) for weight, state in zip(weights, states, strict=True))
    expected = torch.stack([full[:, :2].mean(dim=1), full[:, 2:].mean(dim=1)], dim=1).amax(dim=1)
    parts = [
        Influence(blocks(candidates), target_directions(blocks(targets), "task_max", tasks), weight)
        for weight, (candidates, targets) in zip(weights, states, strict=True)
    ]
    np.testing.assert_allclose(influence_scores(parts, 11).values, expected.numpy(), rtol=0, atol=1e-12)
    parts[1] = Influence(blocks(states[1][0], 3), parts[1].directions)
    with pytest.raises(ValueError, match="same blocks"):
        influence_scores(parts, 11)


def test_zero_and_broken_rows():
    candidates = torch.tensor([[1.0, 0.0], [0.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0], [0.0, 2.0]])
    direction = target_directions(blocks(torch.tensor([[3.0, 0.0]])))
    scores = influence_scores([Influence(blocks(candidates, 2), direction)], 6)
    assert scores.values.tolist() == [1.0, -np.inf, -np.inf, -np.inf, 0.0, -np.inf]
    assert (scores.not_finite, scores.zero) == ([2, 3], [1])
    assert unusual_rows(blocks(candidates, 2)) == ([2, 3], [1])
    zero_target = target_directions(blocks(torch.tensor([[2.0, 0.0], [0.0, 0.0]])))
    assert zero_target.tolist() == [[0.5, 0.0]]


def test_a_row_counts_unless_it_is_broken_somewhere_or_zero_everywhere():
    first = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    second = torch.tensor([[float("nan"), 0.0], [0.0, 0.0], [2.0, 0.0]])
    direction = target_directions(blocks(torch.tensor([[3.0, 0.0]])))
    scores = influence_scores(
        [Influence(blocks(first), direction, 0.75), Influence(blocks(second), direction, 0.25)], 3
    )
    assert scores.values.tolist() == [-np.inf, -np.inf, 0.25]
    assert (scores.not_finite, scores.zero) == ([0], [1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("k", "d"), [(4096, 1), (4096, 7), (33, 2), (1, 1)])
def test_equal_rows_have_equal_bits_in_any_block_and_ties_go_to_the_smaller_index(k, d, dtype):
    generator = torch.Generator().manual_seed(k + d)
    row = torch.randn(k, generator=generator).to(dtype)
    n = 45
    candidates = torch.randn(n, k, generator=generator).to(dtype)
    same = [0, 3, 17, 31, 32, 40, 44]
    candidates[same] = row
    directions = target_directions(blocks(torch.randn(d, k, generator=generator)), "max")
    found = []
    for size in (1, 3, 8, 32, 45):
        found.append(influence_scores([Influence(blocks(candidates, size), directions)], n).values)
        assert len({found[-1][index] for index in same}) == 1
        order = top_k(found[-1], n).tolist()
        assert [index for index in order if index in same] == same
    assert all(np.array_equal(scores, found[0]) for scores in found)
    full = candidates.double() / candidates.double().norm(dim=1, keepdim=True) @ directions.T
    np.testing.assert_allclose(found[0], full.amax(dim=1).numpy(), rtol=0, atol=2e-11)


@pytest.mark.parametrize("aggregate", ["mean", "max", "task_max"])
@pytest.mark.parametrize("targets", [[[0.0, 0.0]] * 2, [[1.0, 2.0], [-1.0, -2.0]]])
def test_targets_without_a_direction_are_no_signal(targets, aggregate):
    if aggregate == "max" and targets[0][0]:
        pytest.skip("opposite targets are two directions")
    with pytest.raises(SelectionError, match=r"no evaluation sample carries a signal: .* 2 targets"):
        target_directions(blocks(torch.tensor(targets)), aggregate, ["a", "a"])


def test_targets_must_be_usable():
    with pytest.raises(SelectionError, match="no evaluation sample is left to"):
        target_directions(blocks(torch.zeros((0, 4))))
    broken = torch.tensor([[1.0, 0.0], [float("nan"), 1.0]])
    with pytest.raises(SelectionError, match="not finite"):
        target_directions(blocks(broken))
    assert target_directions(blocks(broken), leave_out={1}).tolist() == [[1.0, 0.0]]
    with pytest.raises(SelectionError, match="no evaluation sample of task 'b' is left"):
        target_directions(blocks(broken), "task_max", ["a", "b"], leave_out={1})
    with pytest.raises(SelectionError, match="needs the task of every"):
        target_directions(blocks(torch.ones(2, 4)), "task_max", ["a", None])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scale_of_a_row_does_not_matter(dtype):
    rows = torch.randn(4, 6, dtype=dtype)
    scaled = rows * torch.tensor([[1e-30], [1.0], [1e30], [3.0]], dtype=dtype)
    torch.testing.assert_close(normalized_rows(scaled), normalized_rows(rows))
    direction = target_directions(blocks(rows[:1]))
    scores = [influence_scores([Influence(blocks(values), direction)], 4).values for values in (rows, scaled)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0, float("-inf")]), min_size=1, max_size=30), st.data())
def test_top_k_is_a_stable_sort(values, data):
    scores = np.array(values)
    usable = int((scores > -np.inf).sum())
    count = data.draw(st.integers(0, usable))
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert top_k(scores, count).tolist() == expected
    with pytest.raises(SelectionError, match="usable score"):
        top_k(scores, usable + 1)
