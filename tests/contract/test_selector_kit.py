"""The contract of selectors: an honest one passes, and each wrong one fails exactly one test."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ConfigDict

from dataflex.errors import SelectionError
from dataflex.selectors.base import Selection, SelectionContext, Selector, SelectorConfig
from dataflex.testing import SelectorContract, stepped_optimizer
from helpers.contracts import failures


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
    return TestHonest().context(Path())


def contract_of(kind: type[Honest], **claims: Any) -> SelectorContract:
    return type("Contract", (SmallContract,), {"make": lambda self: kind(), **claims})()


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
