from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.gradients.advantages import advantages
from dataflex.gradients.reliability import Reliability, paired_reliability, target_reliability
from dataflex.gradients.similarity import normalized_rows
from dataflex.utils.reliability import LOW, needed_cosine

K = 4096


def targets(count: int, strength: float, seed: int, dim: int = K) -> torch.Tensor:
    """Unit-sized noise around a common direction: ``(count, dim)``, cosine with the direction about ``strength``."""
    stream = torch.Generator().manual_seed(seed)
    common = torch.randn(dim, generator=stream, dtype=torch.float64)
    noise = torch.randn(count, dim, generator=stream, dtype=torch.float64)
    return strength * common + (1 - strength**2) ** 0.5 * noise


def blocks(rows: torch.Tensor, size: int = 7):
    return ((start, rows[start : start + size]) for start in range(0, len(rows), size))


def test_it_is_the_mean_over_all_splits() -> None:
    rows = targets(6, 0.3, seed=0, dim=40)
    unit = normalized_rows(rows)
    exact = []
    for half in itertools.combinations(range(6), 3):
        other = [row for row in range(6) if row not in half]
        exact.append(torch.cosine_similarity(unit[list(half)].sum(0), unit[other].sum(0), dim=0).item())
    found = [target_reliability(blocks(rows, 4), 6, seed=seed).targets for seed in range(40)]
    assert sum(found) / 40 == pytest.approx(sum(exact) / len(exact), abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_signal_and_noise_are_told_apart(seed: int) -> None:
    signal = target_reliability(blocks(targets(16, 0.5, seed)), 16, seed=1)
    noise = target_reliability(blocks(targets(16, 0.0, seed)), 16, seed=1)
    expected = 0.25 / (0.25 + 0.75 / 8)
    assert signal.targets == pytest.approx(expected, abs=0.05)
    assert abs(noise.targets) < 0.1
    assert not signal.low
    assert noise.low


def test_blocks_and_rows_left_out_change_nothing() -> None:
    rows = targets(11, 0.4, seed=3)
    whole = target_reliability(blocks(rows, 11), 11, seed=5)
    assert target_reliability(blocks(rows, 2), 11, seed=5).targets == pytest.approx(whole.targets, abs=1e-12)
    spoilt = torch.cat([rows, torch.full((1, K), float("nan")), torch.zeros(1, K)])
    assert target_reliability(blocks(spoilt), 13, seed=5, leave_out={11, 12}).targets == pytest.approx(
        whole.targets, abs=1e-12
    )


def test_tasks_are_compared_with_themselves() -> None:
    first, second = targets(8, 0.6, seed=0), targets(8, 0.0, seed=1)
    rows, names = torch.cat([first, second, first[:1]]), ["a"] * 8 + ["b"] * 8 + ["alone"]
    found = target_reliability(blocks(rows), 17, seed=0, groups=names)
    assert found.groups is not None
    assert set(found.groups) == {"a", "b"}  # a single target has no second half
    assert found.groups["a"] > 0.6
    assert abs(found.groups["b"]) < 0.15
    assert found.targets == pytest.approx(sum(found.groups.values()) / 2)


def test_what_cannot_be_known_is_none() -> None:
    assert target_reliability(blocks(targets(1, 1.0, 0)), 1, seed=0).targets is None
    assert target_reliability(iter(()), 0, seed=0).targets is None
    assert not Reliability(None).low
    assert "not known" in Reliability(None).describe()


def test_halves_of_answers() -> None:
    same = targets(12, 0.5, seed=0).reshape(6, 2, K)
    unit = normalized_rows(same.flatten(0, 1)).reshape(6, 2, K)
    expected = torch.cosine_similarity(unit[:, 0].sum(0), unit[:, 1].sum(0), dim=0).item()
    assert paired_reliability(list(same.float())) == pytest.approx(expected, abs=1e-6)
    same[2, 1] = 0.0
    assert paired_reliability(list(same)) == pytest.approx(paired_reliability(list(same[[0, 1, 3, 4, 5]])), abs=1e-12)
    assert paired_reliability(list(torch.zeros(3, 2, 4))) is None
    assert not Reliability(0.9, LOW - 0.1).low  # the noise of the answers is in the targets already
    assert Reliability(None, LOW - 0.1).low


@given(st.integers(2, 500))
def test_the_cosine_that_is_needed_gives_the_lowest_reliability_that_will_do(targets):
    cosine = needed_cosine(targets)
    assert cosine / (cosine + 2 * (1 - cosine) / targets) == pytest.approx(LOW)


def test_one_target_has_no_halves():
    assert needed_cosine(1) is None
    assert needed_cosine(0) is None


def policy_targets(seed: int, *, rewarded: float, groups: int) -> torch.Tensor:
    """Policy gradients of 16 prompts x 4 answers: ``(16, k)``.

    An answer's score function is one of ``groups`` directions if it is a right one, another direction if it is wrong
    (both are shared by all prompts), and noise of twice their length; a right answer earns 1.

    Args:
        seed: Of everything drawn.
        rewarded: Probability of a right answer; rewards are drawn apart from the answers if it is negative.
        groups: Kinds of right answers, prompts by turns.
    """
    stream = torch.Generator().manual_seed(seed)
    right = torch.nn.functional.normalize(torch.randn(groups, K, generator=stream, dtype=torch.float64), dim=1)
    wrong = torch.nn.functional.normalize(torch.randn(K, generator=stream, dtype=torch.float64), dim=0)
    rows = []
    for prompt in range(16):
        hits = torch.rand(4, generator=stream) < abs(rewarded)
        rewards = hits if rewarded > 0 else torch.rand(4, generator=stream) < abs(rewarded)
        noise = 2 * torch.nn.functional.normalize(torch.randn(4, K, generator=stream, dtype=torch.float64), dim=1)
        answers = torch.where(hits[:, None], right[prompt % groups], wrong) + noise
        weights = torch.tensor(advantages(rewards.double().tolist(), "leave_one_out"), dtype=torch.float64)
        rows.append(weights @ answers)
    return torch.stack(rows)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("groups", [1, 2])
def test_planted_tasks_are_told_from_rewards_that_mean_nothing(seed: int, groups: int) -> None:
    """Two synthetic tasks: one direction for all prompts, and one for every other prompt."""
    signal, noise = (policy_targets(seed, rewarded=share, groups=groups) for share in (0.5, -0.5))
    silent = [[row for row in range(16) if not rows[row].any()] for rows in (signal, noise)]
    found = [
        target_reliability(blocks(rows), 16, seed=1, leave_out=left)
        for rows, left in zip((signal, noise), silent, strict=True)
    ]
    assert not found[0].low, found[0].describe()
    assert found[1].low, found[1].describe()
