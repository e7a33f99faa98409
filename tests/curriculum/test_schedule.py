from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.curriculum.schedule import Phase, Schedule, random_order, selected_order
from dataflex.errors import TrainingError


def test_the_documented_schedule():
    schedule = Schedule(warmup_step=10, update_step=10, update_times=2)
    assert schedule.total_steps() == 30
    assert Schedule(10, 10, 9).total_steps(1.1) == 110  # the product of the floats is a little more
    assert Schedule(1, 5, 2).total_steps(18 / 11) == 18  # and this quotient's decimals
    assert schedule.phases() == [Phase(0, 10, None), Phase(10, 20, 1), Phase(20, 30, 2)]


def test_epochs_repeat_the_cycle_and_cut_the_end():
    phases = Schedule(2, 3, 1).phases(1.5)
    assert phases == [Phase(0, 2, None), Phase(2, 5, 1), Phase(5, 7, None), Phase(7, 8, 2)]


def test_no_warm_up_and_no_selection():
    assert Schedule(0, 4, 2).phases() == [Phase(0, 4, 1), Phase(4, 8, 2)]
    assert Schedule(5).phases() == [Phase(0, 5, None)]


@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.floats(0.1, 4))
def test_phases_cover_the_run(warmup, update, times, epochs):
    if warmup + update * times == 0:
        with pytest.raises(TrainingError, match="no steps"):
            Schedule(warmup, update, times)
        return
    schedule = Schedule(warmup, update, times)
    phases = schedule.phases(epochs)
    steps = [step for phase in phases for step in range(phase.start, phase.stop)]
    assert steps == list(range(schedule.total_steps(epochs)))
    rounds = [phase.round for phase in phases if phase.round]
    assert rounds == list(range(1, len(rounds) + 1))


def test_negative_numbers_are_named_together():
    with pytest.raises(TrainingError, match="warmup_step must be at least 0, got -1; update_step must be"):
        Schedule(-1, -2, 1)


@given(st.integers(1, 12), st.integers(0, 30), st.integers(1, 30), st.integers(0, 3))
def test_random_order_is_a_window_of_permutations(n, start, count, seed):
    whole = random_order(n, 0, start + count, seed=seed)
    assert np.array_equal(random_order(n, start, count, seed=seed), whole[start:])
    for epoch in range((start + count) // n):
        assert sorted(whole[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))


def test_random_order_without_shuffling():
    assert random_order(3, 2, 5, seed=0, shuffle=False).tolist() == [2, 0, 1, 2, 0]


def test_selected_order_shuffles_by_seed_and_repeats_when_asked_for_more():
    indices = np.array([5, 3, 9, 1])
    order = selected_order(indices, 4, seed=1, round_number=1)
    assert sorted(order.tolist()) == [1, 3, 5, 9]
    assert np.array_equal(order, selected_order(indices, 4, seed=1, round_number=1))
    orders = {tuple(selected_order(indices, 4, seed=seed, round_number=r)) for seed in (1, 2) for r in (1, 2)}
    assert len(orders) > 1
    longer = selected_order(indices, 10, seed=1, round_number=1)
    assert sorted(longer[:4].tolist()) == sorted(longer[4:8].tolist()) == [1, 3, 5, 9]
