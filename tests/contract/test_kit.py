"""The kit that authors of plugins test with: an honest component passes, and each wrong one fails exactly one test."""

from __future__ import annotations

import ast
import hashlib
import inspect
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import torch
from pydantic import ConfigDict

import dataflex.testing
from dataflex.errors import DataflexError, RewardError, SelectionError
from dataflex.rewards.base import RewardBackend
from dataflex.selectors.base import Selector, SelectorConfig
from dataflex.testing import EchoReward, RewardContract, SelectorContract, run_ranks, stepped_optimizer
from dataflex.testing.rewards import EchoConfig
from dataflex.types import RewardRequest, Selection, SelectionContext


class Honest(Selector[SelectorConfig]):
    """Scores candidates by a hash of their tokens."""

    name = "honest"
    Config = SelectorConfig

    def scores(self, context: Any) -> np.ndarray:
        digests = [hashlib.sha256(str(example.input_ids).encode()).digest() for example in context.train_dataset]
        return np.array([int.from_bytes(digest[:4]) / 2**32 for digest in digests])

    def select(self, context: Any) -> Selection:
        scores = self.scores(context)
        if context.num_samples > len(scores):
            raise SelectionError("too many")
        indices = np.argsort(-scores, kind="stable")[: context.num_samples].astype(np.int64)
        return Selection(indices, scores, self.name, context.step, context.round)


def instead(**fields: Any) -> type[Honest]:
    """An honest selector whose selection has other fields; a function gets the selection."""

    class Wrong(Honest):
        def select(self, context: Any) -> Selection:
            found = super().select(context)
            return replace(found, **{key: value(found) if callable(value) else value for key, value in fields.items()})

    return Wrong


def shifted(by: Any) -> type[Honest]:
    """A selector of consecutive positions that start where ``by(self, context)`` says."""

    class Shifted(Honest):
        def select(self, context: Any) -> Selection:
            found = super().select(context)
            n, k = len(found.scores), len(found.indices)
            start = by(self, context)
            return replace(found, indices=(np.arange(k, dtype=np.int64) + start) % n, scores=None)

    return Shifted


def unusable(found: Selection) -> np.ndarray:
    scores = found.scores.copy()
    scores[found.indices[1]] = -np.inf
    return scores


def not_a_number(found: Selection) -> np.ndarray:
    scores = found.scores.copy()
    scores[0] = np.nan
    return scores


def count_calls(selector: Any, context: Any) -> int:
    selector.calls = getattr(selector, "calls", -1) + 1
    return selector.calls


def look_for_a_file(selector: Any, context: Any) -> int:
    marker = context.output_dir / f"round-{context.round}"
    found = marker.exists()
    context.ranks.barrier()
    marker.touch()
    return int(found)


def wait_on_one_rank(selector: Any, context: Any) -> int:
    if context.ranks.is_main:
        context.ranks.gather(None)
    return 0


class StateThatIsNoJson(Honest):
    def state_dict(self) -> dict[str, Any]:
        return {"seen": np.int64(3)}


class Greedy(Honest):
    def select(self, context: Any) -> Selection:
        return super().select(replace(context, num_samples=min(context.num_samples, len(context.train_dataset))))


class WrongKindOfError(Honest):
    def check(self, context: Any) -> None:
        if context.num_samples > len(context.train_dataset):
            raise IndexError("too many")


class Entropy(Honest):
    def select(self, context: Any) -> Selection:
        found = super().select(context)
        drawn = np.random.default_rng().permutation(len(found.scores))[: context.num_samples]
        return replace(found, indices=drawn, scores=None)


class NeedsMore(Honest):
    def select(self, context: Any) -> Selection:
        assert len(context.eval_dataset) > 0
        return super().select(context)


class ClosesOnce(Honest):
    closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class AnythingGoes(Honest):
    class Config(SelectorConfig):
        model_config = ConfigDict(extra="allow")


class Undocumented(Honest):
    class Config(SelectorConfig):
        alpha: float = 0.5


def leaving(trace: Any) -> type[Honest]:
    """An honest selector that does something to the context."""

    class Leaving(Honest):
        def select(self, context: Any) -> Selection:
            trace(context)
            return super().select(context)

    return Leaving


def spoil_a_weight(context: Any) -> None:
    with torch.no_grad():
        next(parameter for parameter in context.model.parameters() if parameter.requires_grad).add_(1)


def spoil_a_moment(context: Any) -> None:
    next(iter(context.optimizer.state.values()))["exp_avg"].zero_()


WRONG_SELECTORS: dict[str, tuple[type[Honest], str]] = {
    "too few": (instead(indices=lambda found: found.indices[1:]), "selects_as_many"),
    "int32": (instead(indices=lambda found: found.indices.astype(np.int32)), "selects_as_many"),
    "beyond the end": (instead(indices=np.arange(12, 17), scores=None), "selects_as_many"),
    "negative": (instead(indices=np.arange(-1, 4), scores=None), "selects_as_many"),
    "twice": (instead(indices=np.zeros(5, dtype=np.int64)), "selects_no_sample_twice"),
    "float32 scores": (instead(scores=lambda found: found.scores.astype(np.float32)), "scores_every_candidate"),
    "scores of some": (instead(scores=lambda found: found.scores[found.indices]), "scores_every_candidate"),
    "NaN": (instead(scores=not_a_number), "scores_every_candidate"),
    "unusable": (instead(scores=unusable), "scores_every_candidate"),
    "another's name": (instead(selector="other"), "says_what_it_did"),
    "another round": (instead(round=7), "says_what_it_did"),
    "report of arrays": (instead(report={"x": np.ones(2)}), "says_what_it_did"),
    "report of NaN": (instead(report={"x": float("nan")}), "says_what_it_did"),
    "more than there is": (Greedy, "refuses_more"),
    "wrong kind of error": (WrongKindOfError, "refuses_more"),
    "entropy": (Entropy, "equal_runs"),
    "position": (shifted(lambda self, context: 0), "order_of_candidates"),
    "forgets": (shifted(count_calls), "a_resumed_run"),
    "state": (StateThatIsNoJson, "a_resumed_run"),
    "left-overs": (shifted(look_for_a_file), "a_repeated_round"),
    "rank": (shifted(lambda self, context: context.ranks.index), "ranks_play"),
    "number of ranks": (shifted(lambda self, context: context.ranks.count), "ranks_play"),
    "hangs": (shifted(wait_on_one_rank), "ranks_play"),
    "mode": (leaving(lambda context: context.model.eval()), "leaves_no_trace"),
    "gradients": (leaving(lambda context: context.model.zero_grad()), "leaves_no_trace"),
    "weights": (leaving(spoil_a_weight), "leaves_no_trace"),
    "moments": (leaving(spoil_a_moment), "leaves_no_trace"),
    "torch": (leaving(lambda context: torch.rand(1)), "leaves_no_trace"),
    "numpy": (leaving(lambda context: np.random.rand()), "leaves_no_trace"),
    "hooks": (leaving(lambda context: context.model.register_forward_hook(lambda *_: None)), "leaves_no_trace"),
    "evaluation set": (NeedsMore, "needs_what_it_says"),
    "close": (ClosesOnce, "can_be_closed"),
    "any parameter": (AnythingGoes, "unknown_parameters"),
    "undocumented": (Undocumented, "parameters_are_documented"),
}
CLAIMS_ORDER = {"position"}


def global_numbers(selector: Any, context: Any) -> int:
    """From torch's global state, which is put back: the trace is covered."""
    with torch.random.fork_rng(devices=[]):
        return int(torch.randint(16, (1,)))


class SmallContract(SelectorContract):
    """The contract around a model of six numbers: what is wrong here does not depend on the model."""

    def context(self, folder: Path, *, round: int = 1, **changes: Any) -> SelectionContext:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = torch.nn.Linear(2, 2).eval()
        steps = 2 + 3 * (round - 1)
        fields = {"model": model, "optimizer": stepped_optimizer(model, steps), "step": steps, "round": round}
        return replace(whole_context(), output_dir=folder, **(fields | changes))


@cache
def whole_context() -> SelectionContext:
    return SelectorContract().context(Path())


def contract_of(kind: type[Honest], **claims: Any) -> SelectorContract:
    return type("Contract", (SmallContract,), {"make": lambda self: kind(), **claims})()


def failures(contract: Any, folder: Path) -> set[str]:
    """Names of the tests that fail; skipped ones do not."""
    failed = set()
    for name in sorted(name for name in dir(contract) if name.startswith("test_")):
        test, arguments = getattr(contract, name), []
        if "tmp_path" in inspect.signature(test).parameters:
            arguments = [folder / name]
            arguments[0].mkdir()
        try:
            test(*arguments)
        except SkipTest:
            continue
        except AssertionError:
            failed.add(name)
    return failed


class TestHonest(SelectorContract):
    order_equivariant = True

    def make(self) -> Honest:
        return Honest()


def test_an_honest_selector_passes(tmp_path: Path) -> None:
    assert failures(contract_of(Honest, order_equivariant=True), tmp_path) == set()


@pytest.mark.parametrize("fault", WRONG_SELECTORS)
def test_a_wrong_selector_fails_exactly_one_test(fault: str, tmp_path: Path) -> None:
    kind, expected = WRONG_SELECTORS[fault]
    [failed] = failures(contract_of(kind, order_equivariant=fault in CLAIMS_ORDER), tmp_path)
    assert failed.startswith(f"test_{expected}")


def test_global_random_numbers_are_found_although_they_leave_no_trace(tmp_path: Path) -> None:
    failed = failures(contract_of(shifted(global_numbers)), tmp_path)
    assert failed == {"test_equal_runs_select_the_same"}


def test_a_draw_that_ignores_the_seed_fails_the_test_of_draws(tmp_path: Path) -> None:
    assert failures(contract_of(Honest, draws=True), tmp_path) == {"test_draws_follow_seed_and_round"}


def test_repeats_may_be_more_than_there_is(tmp_path: Path) -> None:
    class Repeating(Honest):
        def select(self, context: Any) -> Selection:
            indices = np.zeros(context.num_samples, dtype=np.int64)
            return Selection(indices, None, self.name, context.step, context.round, repeats=True)

    assert failures(contract_of(Repeating), tmp_path) == set()


def test_every_clause_of_a_selector_has_a_wrong_one() -> None:
    clauses = {name for name in dir(SelectorContract) if name.startswith("test_")}
    covered = {name for name in clauses for _, prefix in WRONG_SELECTORS.values() if name.startswith(f"test_{prefix}")}
    assert clauses - covered == {"test_draws_follow_seed_and_round"}  # a claim; it has a test of its own
    assert all(getattr(SelectorContract, name).__doc__ for name in clauses)


class WrongReward(EchoReward):
    """An echo that changes its rewards."""

    def score(self, requests: Any) -> Any:
        return self.changed(super().score(requests), requests)

    def changed(self, rewards: list[Any], requests: Any) -> Any:
        raise NotImplementedError


def rewarding(change: Any) -> type[WrongReward]:
    return type("Rewarding", (WrongReward,), {"changed": lambda self, rewards, requests: change(rewards, requests)})


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


class Drifting(WrongReward):
    def changed(self, rewards: list[Any], requests: Any) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        return [None if reward is None else reward / self.calls for reward in rewards]


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
    "relative": (
        rewarding(lambda rewards, requests: [rewards[0] / 2] if len(rewards) == 1 else rewards),
        "other_answers",
    ),
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


def test_every_clause_of_a_reward_has_a_wrong_one() -> None:
    clauses = {name for name in dir(RewardContract) if name.startswith("test_")}
    covered = {name for name in clauses for _, prefix in WRONG_REWARDS.values() if name.startswith(f"test_{prefix}")}
    assert clauses - covered == {"test_parameters_are_documented"}  # shared with selectors, which have a wrong one
    assert all(getattr(RewardContract, name).__doc__ for name in clauses)


def test_the_kit_does_without_pytest() -> None:
    for file in Path(inspect.getfile(dataflex.testing)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "pytest" not in ast.unparse(node)


class TestRanks:
    def test_what_ranks_send_arrives_by_rank(self) -> None:
        def work(ranks: Any) -> Any:
            sums = ranks.sum([ranks.index, 1.0])
            tensors = ranks.gather_tensors(torch.full((ranks.index,), float(ranks.index)))
            return ranks.gather({"rank": ranks.index}), sums, [tensor.tolist() for tensor in tensors]

        expected = ([{"rank": 0}, {"rank": 1}, {"rank": 2}], [3.0, 3.0], [[], [1.0], [2.0, 2.0]])
        assert run_ranks(3, work) == [expected] * 3

    def test_ranks_take_turns(self) -> None:
        order: list[tuple[int, int]] = []

        def work(ranks: Any) -> None:
            for turn in range(3):
                order.append((turn, ranks.index))
                ranks.barrier()

        run_ranks(2, work)
        assert order == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]

    def test_each_rank_has_its_own_random_numbers(self) -> None:
        def work(ranks: Any) -> list[float]:
            found = []
            for _ in range(3):
                found += [float(torch.rand(1)), float(np.random.rand())]
                ranks.barrier()
            return found

        before = torch.get_rng_state()
        first, second = run_ranks(2, work)
        assert first == second
        assert len(set(first)) == 6
        assert torch.equal(torch.get_rng_state(), before)

    def test_an_error_of_the_main_process_is_raised_on_all(self) -> None:
        seen: list[str] = []

        def fail() -> None:
            raise SelectionError("no")

        def work(ranks: Any) -> None:
            try:
                ranks.on_main(fail)
            except DataflexError as error:
                seen.append(error.message)
                raise

        with pytest.raises(SelectionError, match="no"):
            run_ranks(2, work)
        assert sorted(seen) == ["no", "the main process failed: no"]

    def test_an_error_of_one_rank_does_not_hang(self) -> None:
        def work(ranks: Any) -> None:
            if ranks.index == 1:
                raise ValueError("rank 1 gave up")
            ranks.barrier()

        with pytest.raises(ValueError, match="rank 1 gave up"):
            run_ranks(3, work)

    def test_a_rank_that_is_waited_for_in_vain_is_an_error(self) -> None:
        def work(ranks: Any) -> None:
            if ranks.index != 1:
                ranks.barrier()

        with pytest.raises(AssertionError, match=r"rank 0 waits .* rank 1 has returned: real processes would hang"):
            run_ranks(3, work)
