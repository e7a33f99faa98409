"""``k_center`` against the contract of dataflex and against a plain form of the rule."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataflex.errors import SelectionError
from dataflex.testing import SelectorContract, tiny_context
from dataflex_example.k_center import DIAMETER, KCenterSelector, k_center


class TestKCenter(SelectorContract):
    order_equivariant = True

    def make(self) -> KCenterSelector:
        return KCenterSelector(batch_size=5)


def unit(n: int, d: int = 3, seed: int = 0) -> np.ndarray:
    points = np.random.default_rng(seed).standard_normal((n, d))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def radius(points: np.ndarray, centres: list[int]) -> float:
    """The largest distance of a point to its nearest centre."""
    gaps = np.linalg.norm(points[:, None] - points[centres][None], axis=2)
    return float(gaps.min(axis=1).max())


@pytest.mark.parametrize("covered", [[], [3], [3, 7, 11]])
def test_it_is_the_greedy_rule(covered: list[int]) -> None:
    points, centres = unit(30), list(covered)
    indices, gains, distances = k_center(points, 8, covered)
    for place, row in enumerate(indices.tolist()):
        if centres:
            gaps = np.linalg.norm(points[:, None] - points[centres][None], axis=2).min(axis=1)
            assert row == int(gaps.argmax())
            assert gains[place] == pytest.approx(gaps[row], abs=1e-7)
        else:
            assert row == int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmin())
            assert gains[place] == DIAMETER
        centres.append(row)
    assert distances.max() == pytest.approx(radius(points, centres), abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_its_radius_is_at_most_twice_the_best(seed: int) -> None:
    points = unit(10, seed=seed)
    best = min(radius(points, list(centres)) for centres in itertools.combinations(range(10), 3))
    found = k_center(points, 3)[0].tolist()
    assert best - 1e-9 <= radius(points, found) <= 2 * best + 1e-9


def test_equal_points_are_taken_once_each() -> None:
    assert sorted(k_center(np.tile(unit(1), (4, 1)), 4)[0].tolist()) == [0, 1, 2, 3]


def test_rounds_go_on_until_fewer_are_left_than_are_asked_for(tmp_path: Path) -> None:
    selector, context = KCenterSelector(), tiny_context(tmp_path, num_samples=5)  # 12 candidates
    first, second, third = (set(selector.select(context).indices.tolist()) for _ in range(3))
    assert not first & second
    assert third == first
    forgetful = KCenterSelector(remember=False)
    assert [set(forgetful.select(context).indices.tolist()) for _ in range(2)] == [first, first]


def test_too_many_samples_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="13 samples are to be selected from 12 candidates"):
        KCenterSelector().check(replace(tiny_context(tmp_path), num_samples=13))
