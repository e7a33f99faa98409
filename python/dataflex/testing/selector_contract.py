"""The contract of a selector as tests that anyone can run on theirs.

Subclass :class:`SelectorContract` in a test module, say how a selector is made, and run pytest::

    class TestMySelector(SelectorContract):
        def make(self):
            return MySelector(alpha=0.5)

Each ``test_`` method checks one clause; its docstring states it. pytest itself is not imported.
"""

from __future__ import annotations

import copy
import json
import shutil
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

import numpy as np

from dataflex.errors import SelectionError
from dataflex.selectors.base import Selection, SelectionContext, Selector
from dataflex.testing.comparison import difference, unpermuted
from dataflex.testing.component_contract import ComponentContract
from dataflex.testing.context import tiny_context
from dataflex.testing.ranks import run_ranks
from dataflex.testing.tiny import tiny_dataset
from dataflex.testing.traces import Trace, seeded_globals
from dataflex.utils.distributed import Ranks

CANDIDATES, TARGETS, SELECTED = 16, 3, 5
ROUNDS = 3


class SelectorContract(ComponentContract):
    """Tests of one selector; a subclass implements :meth:`make` and says what the selector claims.

    Attributes:
        order_equivariant: The order of the candidates plays no part: the same samples are selected in any order.
        draws: Another seed of the run, or another round, gives another selection.
        looks_at_all: Every candidate has a score, where the selector gives scores.
        tolerance: How far scores may differ where floats are added in another order (other ranks, other order of the
            candidates); what runs twice in the same way must be identical.
    """

    order_equivariant: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    looks_at_all: ClassVar[bool] = True
    tolerance: ClassVar[float] = 1e-4

    @abstractmethod
    def make(self) -> Selector[Any]:
        """A new selector, always with the same parameters."""

    def context(self, folder: Path, *, round: int = 1, **changes: Any) -> SelectionContext:
        """The selection to make: 5 of 16 different candidates, 3 evaluation samples, 3 rounds, a tiny LoRA model.

        Every call builds it anew. A subclass may change it, for other data or a larger selection, by passing fields
        on: ``return super().context(folder, round=round, **({"num_samples": 7} | changes))``.

        Args:
            folder: ``output_dir`` of the run; it exists.
            round: Which selection; the model has taken three more steps before each.
            **changes: Fields of :class:`dataflex.SelectionContext` to replace.
        """
        fields: dict[str, Any] = {
            "train_dataset": tiny_dataset(CANDIDATES, seed=0, distinct=True),
            "eval_dataset": tiny_dataset(TARGETS, seed=100),
            "num_samples": SELECTED,
            "round": round,
            "num_rounds": ROUNDS,
        }
        return tiny_context(folder, steps=2 + 3 * (round - 1), **(fields | changes))

    def test_selects_as_many_as_were_asked_for(self, tmp_path: Path) -> None:
        """``indices`` are ``(num_samples,)`` int64 positions of candidates."""
        context, selection = self._once(tmp_path)
        indices, n = selection.indices, len(context.train_dataset)
        if indices.dtype != np.int64 or indices.shape != (context.num_samples,):
            raise AssertionError(
                f"indices are {indices.dtype}{indices.shape}, expected int64({context.num_samples},): one position a "
                "sample that was asked for (num_samples)"
            )
        if indices.min() < 0 or indices.max() >= n:
            raise AssertionError(f"indices reach from {indices.min()} to {indices.max()}, there are {n} candidates")

    def test_selects_no_sample_twice(self, tmp_path: Path) -> None:
        """Positions are distinct, unless the selection says ``repeats``."""
        _, selection = self._once(tmp_path)
        twice = len(selection.indices) - len(np.unique(selection.indices))
        if twice and not selection.repeats:
            raise AssertionError(f"{twice} of {selection.indices.tolist()} are repetitions (repeats is False)")

    def test_scores_every_candidate_or_none(self, tmp_path: Path) -> None:
        """``scores`` is None or ``(n,)`` float64, NaN only without ``looks_at_all``; the selected are above -inf."""
        context, selection = self._once(tmp_path)
        scores, n = selection.scores, len(context.train_dataset)
        if scores is None:
            return
        if scores.dtype != np.float64 or scores.shape != (n,):
            raise AssertionError(f"scores are {scores.dtype}{scores.shape}, expected float64({n},): one a candidate")
        unscored = np.flatnonzero(np.isnan(scores)).tolist()
        if unscored and self.looks_at_all:
            raise AssertionError(
                f"the scores of {unscored} are NaN; unusable is -inf (looks_at_all = False if they were not looked at)"
            )
        if selected := sorted(set(unscored) & set(selection.indices.tolist())):
            raise AssertionError(f"{selected} were not looked at (their score is NaN), and were selected")
        unusable = [row for row in selection.indices.tolist() if scores[row] == -np.inf]
        if unusable:
            raise AssertionError(f"{unusable} have score -inf, which means unusable, and were selected")

    def test_says_what_it_did(self, tmp_path: Path) -> None:
        """Selector, step and round are those of the context; the report is JSON."""
        context, selection = self._once(tmp_path)
        found = selection.selector, selection.step, selection.round
        expected = self.make().name, context.step, context.round
        if found != expected:
            raise AssertionError(f"selector, step and round are {found}, expected {expected}")
        try:
            json.dumps(dict(selection.report), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"the report is not JSON: {error}: {selection.report!r}") from error

    def test_refuses_more_than_there_is(self, tmp_path: Path) -> None:
        """More samples than candidates are a SelectionError of ``check`` or ``select``, unless samples may repeat."""
        context = self.context(_folder(tmp_path, "run"))
        n = len(context.train_dataset)
        context = replace(context, num_samples=n + 1)
        try:
            selection = self._select(self.make(), context)
        except SelectionError:
            return
        except Exception as error:
            raise AssertionError(
                f"{n + 1} samples of {n} candidates: expected a SelectionError, got {type(error).__name__}: {error}"
            ) from error
        if not selection.repeats:
            raise AssertionError(f"{n + 1} samples of {n} candidates were asked for, and no error was raised")

    def test_equal_runs_select_the_same(self, tmp_path: Path) -> None:
        """Equal contexts give identical selections, whatever the global random states are."""
        problem = self._runs_differ(tmp_path)
        if problem is not None:
            raise AssertionError(
                f"two equal runs differ: {problem}; random numbers come from (context.seed, context.round) alone"
            )

    def test_draws_follow_seed_and_round(self, tmp_path: Path) -> None:
        """A selector that draws selects other samples for another seed and in another round."""
        if not self.draws:
            raise SkipTest("the selector does not claim to draw (draws = False)")
        _, first = self._once(tmp_path)
        for what, changes in {"seed": {"seed": 1}, "round": {"round": 2}}.items():
            context = self.context(_folder(tmp_path, what), **changes)
            if np.array_equal(self._select(self.make(), context).indices, first.indices):
                raise AssertionError(f"another {what} gives the same selection, {first.indices.tolist()}")

    def test_order_of_candidates_plays_no_part(self, tmp_path: Path) -> None:
        """Candidates in another order: the same samples, in the same order, with the same scores."""
        if not self.order_equivariant:
            raise SkipTest("the selector does not claim it (order_equivariant = False)")
        context, expected = self._once(tmp_path)
        order = np.random.default_rng(0).permutation(len(context.train_dataset))
        permuted = self.context(_folder(tmp_path, "permuted"))
        permuted = replace(permuted, train_dataset=permuted.train_dataset.select(order.tolist()))
        found = unpermuted(self._select(self.make(), permuted), order)
        self._expect_same(found, expected, "candidates in another order", tmp_path, self.tolerance)

    def test_a_resumed_run_selects_the_same(self, tmp_path: Path) -> None:
        """A new selector that loads ``state_dict`` goes on as the old one would have; the state is JSON."""
        unbroken, resumed = _folder(tmp_path, "unbroken"), tmp_path / "resumed"
        selector = self.make()
        self._rounds(selector, unbroken, [1])
        try:
            state = json.dumps(selector.state_dict(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"state_dict() is not JSON: {error}") from error
        shutil.copytree(unbroken, resumed)
        expected = self._rounds(selector, unbroken, [2, 3])
        successor = self.make()
        successor.load_state_dict(json.loads(state))
        found = self._rounds(successor, resumed, [2, 3])
        for number, (one, other) in enumerate(zip(found, expected, strict=True), start=2):
            self._expect_same(one, other, f"round {number} of a run that was resumed after round 1", tmp_path)

    def test_a_repeated_round_selects_the_same(self, tmp_path: Path) -> None:
        """A run that is killed after a selection repeats it, with what the selection left in the output folder."""
        folder, first = _folder(tmp_path, "run"), self.make()
        before = copy.deepcopy(first.state_dict())
        expected = self._rounds(first, folder, [1])[0]
        second = self.make()
        second.load_state_dict(before)
        found = self._rounds(second, folder, [1])[0]
        self._expect_same(found, expected, "a round that is repeated", tmp_path)

    def test_ranks_play_no_part(self, tmp_path: Path) -> None:
        """All ranks select the same, and the same as a single process does, whatever their number."""
        expected = self._rounds(self.make(), _folder(tmp_path, "alone"), [1, 2])
        for count in (2, 3):
            folder = _folder(tmp_path, f"{count} ranks")

            def work(ranks: Ranks, folder: Path = folder) -> list[Selection]:
                return self._rounds(self.make(), folder, [1, 2], ranks=ranks)

            ranks = run_ranks(count, work)
            for number, alone in enumerate(expected, start=1):
                what = f"round {number} on {count} ranks"
                self._expect_same(ranks[0][number - 1], alone, what, tmp_path, self.tolerance)
                for rank in range(1, count):
                    what = f"round {number} on rank {rank} of {count}, beside rank 0"
                    self._expect_same(ranks[rank][number - 1], ranks[0][number - 1], what, tmp_path)

    def test_leaves_no_trace(self, tmp_path: Path) -> None:
        """Weights, gradients, optimizer, hooks, train/eval mode and global random states stay as they were."""
        context = self.context(_folder(tmp_path, "run"))
        context.model.train()
        for parameter in context.model.parameters():
            if parameter.requires_grad:
                parameter.grad = parameter.detach().clone()
        trace = Trace(context.model, context.optimizer)
        self._select(self.make(), context)
        changes = sorted(trace.changes())
        if changes:
            shown = "; ".join(changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
            raise AssertionError(f"the selection changed {shown}")

    def test_needs_what_it_says(self, tmp_path: Path) -> None:
        """Without ``needs_eval_dataset`` there may be no evaluation set."""
        if self.make().needs_eval_dataset:
            raise SkipTest("the selector needs an evaluation set and says so")
        context = self.context(_folder(tmp_path, "run"), eval_dataset=None)
        try:
            self._select(self.make(), context)
        except Exception as error:
            raise AssertionError(
                f"needs_eval_dataset is False, and without an evaluation set came {type(error).__name__}: {error}"
            ) from error

    def test_can_be_closed_at_any_time(self, tmp_path: Path) -> None:
        """``close`` raises nothing before a selection, after one, and when it is called again."""
        self.make().close()
        selector = self.make()
        self._select(selector, self.context(_folder(tmp_path, "run")))
        selector.close()
        selector.close()

    def _select(self, selector: Selector[Any], context: SelectionContext) -> Selection:
        """``check`` as the trainer calls it before a run, then ``select``."""
        selector.check(replace(context, step=0, round=1))
        return selector.select(context)

    def _once(self, tmp_path: Path) -> tuple[SelectionContext, Selection]:
        context = self.context(_folder(tmp_path, "once"))
        return context, self._select(self.make(), context)

    def _rounds(self, selector: Selector[Any], folder: Path, rounds: Sequence[int], **changes: Any) -> list[Selection]:
        """Selections of some rounds, one after the other; ``check`` comes before the first."""
        contexts = [self.context(folder, round=number, **changes) for number in rounds]
        selector.check(replace(contexts[0], step=0, round=1))
        return [selector.select(context) for context in contexts]

    def _runs_differ(self, tmp_path: Path) -> str | None:
        selections = []
        for seed in (1, 2):
            context = self.context(_folder(tmp_path, f"equal-{seed}"))
            with seeded_globals(seed):
                selections.append(self._select(self.make(), context))
        return difference(selections[1], selections[0])

    def _expect_same(
        self, found: Selection, expected: Selection, what: str, tmp_path: Path, tolerance: float | None = None
    ) -> None:
        """Raise unless two selections are the same; a selector without determinism fails only the test of that."""
        problem = difference(found, expected, tolerance)
        if problem is None:
            return
        if self._runs_differ(tmp_path) is not None:
            raise SkipTest("equal runs differ already: see test_equal_runs_select_the_same")
        raise AssertionError(f"{what}: {problem}")


def _folder(tmp_path: Path, name: str) -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return folder
