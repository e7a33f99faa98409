"""The contract of reward backends: an honest one passes, and each wrong one fails exactly one test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict

from dataflex.errors import RewardError
from dataflex.rewards.base import RewardBackend
from dataflex.testing import EchoReward, RewardContract, SelectorContract
from dataflex.testing.rewards import EchoConfig
from dataflex.types import RewardRequest
from helpers.contracts import failures


def rewarding(change: Any) -> type[EchoReward]:
    """An echo whose rewards are changed."""

    class Rewarding(EchoReward):
        def score(self, requests: Any) -> Any:
            return change(super().score(requests), requests)

    return Rewarding


def at_an_empty_answer(reward: Any) -> Any:
    return lambda rewards, requests: [
        old if request.prediction else reward for old, request in zip(rewards, requests, strict=True)
    ]


def sort(rewards: list[Any], requests: Any) -> list[Any]:
    """Those of the answers that can be scored, in the places that they have."""
    places = [place for place, request in enumerate(requests) if "unspeakable" not in request.prediction]
    for place, reward in zip(places, sorted(rewards[place] for place in places), strict=True):
        rewards[place] = reward
    return rewards


def halve_alone(rewards: list[Any], requests: Any) -> list[Any]:
    return [rewards[0] / 2] if len(rewards) == 1 else rewards


class Nameless(EchoReward):
    def score(self, requests: Any) -> Any:
        try:
            return super().score(requests)
        except RewardError:
            raise RewardError("something failed") from None


class NeverRaises(EchoReward):
    def score(self, requests: Any) -> Any:
        try:
            return super().score(requests)
        except RewardError:
            return [len(request.prediction) % 7 / 6 for request in requests]


class SkipsAsZero(EchoReward):
    def score(self, requests: Any) -> Any:
        rewards = super().score(requests)
        return [0.0 if reward is None else reward for reward in rewards]


class Drifting(EchoReward):
    calls = 0

    def score(self, requests: Any) -> Any:
        self.calls += 1
        return [None if reward is None else reward / self.calls for reward in super().score(requests)]


class CountsNothing(EchoReward):
    def stats(self) -> dict[str, int | float]:
        return {"scored": 0, "failed": 0}


class Meddling(EchoReward):
    def score(self, requests: Any) -> Any:
        for request in requests:
            request.metadata["seen"] = True
        return super().score(requests)


class ClosesOnceReward(EchoReward):
    closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class AnyParameterReward(EchoReward):
    class Config(EchoConfig):
        model_config = ConfigDict(extra="allow")


WRONG_REWARDS: dict[str, tuple[type[RewardBackend[Any]], str]] = {
    "one too many": (rewarding(lambda rewards, requests: [*rewards, 0.5] if rewards else []), "one_finite_reward"),
    "tuple": (rewarding(lambda rewards, requests: tuple(rewards) if rewards else []), "one_finite_reward"),
    "NaN": (rewarding(at_an_empty_answer(float("nan"))), "one_finite_reward"),
    "missing": (rewarding(at_an_empty_answer(None)), "one_finite_reward"),
    "truth": (rewarding(at_an_empty_answer(True)), "one_finite_reward"),
    "something of nothing": (rewarding(lambda rewards, requests: rewards or [0.5]), "nothing_to_score"),
    "range": (rewarding(lambda rewards, requests: [r and r * 3 for r in rewards]), "rewards_lie"),
    "sorted": (rewarding(sort), "rewards_are_in_the_order"),
    "relative": (rewarding(halve_alone), "other_answers"),
    "drift": (Drifting, "a_second_call"),
    "nameless": (Nameless, "on_error_raise"),
    "never raises": (NeverRaises, "on_error_raise"),
    "a failure is a number": (SkipsAsZero, "on_error_skip"),
    "counters": (CountsNothing, "counts_what"),
    "requests": (Meddling, "leaves_the_requests"),
    "close": (ClosesOnceReward, "can_be_closed"),
    "any parameter": (AnyParameterReward, "unknown_parameters"),
}


def reward_contract(kind: type[RewardBackend[Any]], **claims: Any) -> RewardContract:
    methods = {
        "make": lambda self, **params: kind(fails_on="unspeakable", **params),
        "unscorable": lambda self: RewardRequest("bad", (), "unspeakable"),
    }
    return type("Contract", (RewardContract,), methods | claims)()


def test_an_honest_reward_passes(tmp_path: Path) -> None:
    assert failures(reward_contract(EchoReward), tmp_path) == set()


@pytest.mark.parametrize("fault", WRONG_REWARDS)
def test_a_wrong_reward_fails_exactly_one_test(fault: str, tmp_path: Path) -> None:
    kind, expected = WRONG_REWARDS[fault]
    [failed] = failures(reward_contract(kind), tmp_path)
    assert failed.startswith(f"test_{expected}")


def test_a_reward_without_limits_or_determinism_may_say_so(tmp_path: Path) -> None:
    large, _ = WRONG_REWARDS["range"]
    assert failures(reward_contract(large, highest=None), tmp_path) == set()
    assert failures(reward_contract(Drifting, deterministic=False), tmp_path) == set()


@pytest.mark.parametrize("contract", [RewardContract, SelectorContract])
def test_a_contract_needs_to_know_how_a_component_is_made(contract: type) -> None:
    with pytest.raises(TypeError, match=r"abstract.*make"):
        type("Bare", (contract,), {})()


def test_every_clause_of_a_reward_has_a_wrong_one() -> None:
    clauses = {name for name in dir(RewardContract) if name.startswith("test_")}
    covered = {name for name in clauses for _, prefix in WRONG_REWARDS.values() if name.startswith(f"test_{prefix}")}
    assert clauses - covered == {"test_parameters_are_documented"}  # shared with selectors, which have a wrong one
    assert all(getattr(RewardContract, name).__doc__ for name in clauses)
