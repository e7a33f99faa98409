"""The contract of a weighter as tests that anyone can run on theirs; used like the selector's.

Each ``test_`` method checks one clause; its docstring states it. pytest itself is not imported.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar
from unittest import SkipTest

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import TrainingError
from dataflex.testing.component_contract import ComponentContract
from dataflex.testing.context import tiny_global_batch
from dataflex.testing.ranks import run_ranks
from dataflex.testing.tiny import tiny_dataset
from dataflex.testing.traces import Trace, seeded_globals
from dataflex.weighters.base import GlobalBatch, Weighter, normalised


class WeighterContract(ComponentContract):
    """Tests of one weighter; a subclass implements :meth:`make` and says what the weighter claims.

    Attributes:
        order_equivariant: Samples of a step in another order have the same weights.
        tolerance: How far weights (of mean 1) may differ where floats are added in another order; what runs twice in
            the same way must be identical.
    """

    order_equivariant: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-4

    @abstractmethod
    def make(self) -> Weighter[Any]:
        """A new weighter, always with the same parameters."""

    def batch(self, *, step: int = 1, **changes: Any) -> GlobalBatch:
        """The step to weigh: 6 different samples, 3 evaluation samples, a tiny LoRA model.

        Every call builds it anew. A subclass may change it, for other data, by passing fields on.

        Args:
            step: Which step, from 1; its samples are its own.
            **changes: Fields of :class:`dataflex.GlobalBatch` to replace.
        """
        examples = list(tiny_dataset(6, seed=step, distinct=True))
        return tiny_global_batch(step=step, **({"examples": examples} | changes))

    def test_weighs_every_sample(self) -> None:
        """``(B,)`` finite weights of at least 0, not all 0, for one sample as for many."""
        for count in (1, 2, 6):
            batch = self.batch()
            part = self.batch(examples=batch.examples[:count])
            try:
                normalised(self.make().weights(part), part, self.make().name)
            except TrainingError as error:
                raise AssertionError(str(error)) from error

    def test_equal_runs_weigh_the_same(self) -> None:
        """Equal batches give identical weights, whatever the global random states are."""
        problem = self._runs_differ()
        if problem is not None:
            raise AssertionError(
                f"two equal runs differ: {problem}; random numbers come from (batch.seed, batch.step) alone"
            )

    def test_micro_batches_play_no_part(self) -> None:
        """The size of a forward pass changes no weight."""
        expected = self._weights(self.make(), [1])[0]
        for size in (1, 3, 8):
            found = self._weights(self.make(), [1], micro_batch=size)[0]
            self._expect_same(found, expected, f"micro-batches of {size}", self.tolerance)

    def test_ranks_play_no_part(self) -> None:
        """All ranks return the same, and the same as a single process does, whatever their number."""
        expected = self._weights(self.make(), [1, 2])
        for count in (2, 3):
            found = run_ranks(count, lambda ranks: self._weights(self.make(), [1, 2], ranks=ranks))
            for number, alone in enumerate(expected):
                self._expect_same(found[0][number], alone, f"on {count} ranks", self.tolerance)
                for rank in range(1, count):
                    self._expect_same(
                        found[rank][number], found[0][number], f"on rank {rank} of {count}, beside rank 0"
                    )

    def test_order_of_samples_plays_no_part(self) -> None:
        """Samples of a step in another order: the same weights."""
        if not self.order_equivariant:
            raise SkipTest("the weighter does not claim it (order_equivariant = False)")
        order = np.random.default_rng(0).permutation(6).tolist()
        expected = self._weights(self.make(), [1])[0][order]
        examples = [self.batch().examples[row] for row in order]
        found = self._weights(self.make(), [1], examples=examples)[0]
        self._expect_same(found, expected, "samples in another order", self.tolerance)

    def test_a_resumed_run_weighs_the_same(self) -> None:
        """A new weighter that loads ``state_dict`` goes on as the old one would have; the state is JSON."""
        weighter, successor = self.make(), self.make()
        self._weights(weighter, [1])
        try:
            state = json.dumps(weighter.state_dict(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"state_dict() is not JSON: {error}") from error
        expected = self._weights(weighter, [2, 3])
        successor.load_state_dict(json.loads(state))
        for number, found in enumerate(self._weights(successor, [2, 3])):
            self._expect_same(found, expected[number], f"step {number + 2} of a run that was resumed after step 1")

    def test_leaves_no_trace(self) -> None:
        """Weights of the model, gradients, hooks, train/eval mode and global random states stay as they were."""
        batch = self.batch()
        batch.model.train()
        trace = Trace(batch.model)
        self.make().weights(batch)
        changes = sorted(trace.changes())
        if changes:
            raise AssertionError(f"weighing changed {'; '.join(changes[:5])}")

    def test_needs_what_it_says(self) -> None:
        """Without ``needs_eval_dataset`` there may be no evaluation set."""
        if self.make().needs_eval_dataset:
            raise SkipTest("the weighter needs an evaluation set and says so")
        try:
            self.make().weights(self.batch(eval_dataset=None))
        except Exception as error:
            raise AssertionError(
                f"needs_eval_dataset is False, and without an evaluation set came {type(error).__name__}: {error}"
            ) from error

    def test_says_what_it_costs(self) -> None:
        """``scope`` is ``global`` or ``micro_batch``, ``passes`` a number of forward passes."""
        weighter = self.make()
        if weighter.scope not in ("global", "micro_batch"):
            raise AssertionError(f"scope is {weighter.scope!r}, expected global or micro_batch")
        if not isinstance(weighter.passes, int | float) or weighter.passes < 0:
            raise AssertionError(f"passes is {weighter.passes!r}, expected a number of forward passes")

    def test_can_be_closed_at_any_time(self) -> None:
        """``close`` raises nothing before a step, after one, and when it is called again."""
        self.make().close()
        weighter = self.make()
        weighter.weights(self.batch())
        weighter.close()
        weighter.close()

    def _weights(self, weighter: Weighter[Any], steps: Sequence[int], **changes: Any) -> list[NDArray[np.float64]]:
        """Weights of some steps, one after the other, mean 1."""
        found = []
        for step in steps:
            batch = self.batch(step=step, **changes)
            found.append(normalised(weighter.weights(batch), batch, weighter.name))
        return found

    def _runs_differ(self) -> str | None:
        found = []
        for seed in (1, 2):
            with seeded_globals(seed):
                found += self._weights(self.make(), [1])
        return None if np.array_equal(found[0], found[1]) else f"{found[0].tolist()} and {found[1].tolist()}"

    def _expect_same(
        self, found: NDArray[np.float64], expected: NDArray[np.float64], what: str, tolerance: float = 0.0
    ) -> None:
        """Raise unless two weights are the same; a weighter without determinism fails only the test of that."""
        if np.allclose(found, expected, rtol=tolerance, atol=tolerance):
            return
        if self._runs_differ() is not None:
            raise SkipTest("equal runs differ already: see test_equal_runs_weigh_the_same")
        raise AssertionError(f"{what}: {found.tolist()}, expected {expected.tolist()}")
