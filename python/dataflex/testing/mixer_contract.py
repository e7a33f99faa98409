"""The contract of a mixer as tests that anyone can run on theirs; used like the selector's.

Each ``test_`` method checks one clause; its docstring states it. pytest itself is not imported.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

import numpy as np
from numpy.typing import NDArray

from dataflex.errors import SelectionError
from dataflex.mixers.base import DomainLosses, Mixer, MixtureContext
from dataflex.mixers.outcome import check_mixture
from dataflex.testing.component_contract import ComponentContract
from dataflex.testing.context import tiny_mixture_context
from dataflex.testing.ranks import run_ranks
from dataflex.testing.traces import Trace, seeded_globals

ROUNDS = (1, 2, 3)


class MixerContract(ComponentContract):
    """Tests of one mixer; a subclass implements :meth:`make` and says what the mixer claims.

    Attributes:
        draws: Another seed of the run, or another round, gives another mixture.
        tolerance: How far proportions may differ where floats are added in another order, as by other ranks; what runs
            twice in the same way must be identical.
    """

    draws: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5

    @abstractmethod
    def make(self) -> Mixer[Any]:
        """A new mixer, always with the same parameters."""

    def context(self, folder: Path, *, round: int = 1, **changes: Any) -> MixtureContext:
        """The mixture to make: three domains of 6, 4 and 2 rows, 3 rounds, losses of the phase before, a tiny model.

        Every call builds it anew. A subclass may change it, for other data, by passing fields on.

        Args:
            folder: ``output_dir`` of the run; it exists.
            round: Which mixture; the losses before it are its own.
            **changes: Fields of :class:`dataflex.MixtureContext` to replace.
        """
        context = tiny_mixture_context(folder, round=round, step=2 * round)
        sums = context.losses.sums * np.roll([1.0, 1.5, 0.5], round)
        return replace(context, **({"losses": DomainLosses(sums, context.losses.tokens)} | changes))

    def test_returns_proportions(self, tmp_path: Path) -> None:
        """``(K,)`` float64, finite, at least 0, sum 1."""
        for round_number in ROUNDS:
            context = self.context(tmp_path, round=round_number)
            found = self.make().proportions(context)
            if not isinstance(found, np.ndarray):
                raise AssertionError(f"expected an array, got {type(found).__name__}")
            self._expect_mixture(found, context)

    def test_a_domain_without_rows_gets_nothing(self, tmp_path: Path) -> None:
        """A domain without rows has the proportion 0, and no losses were seen of it."""
        context = tiny_mixture_context(tmp_path, sizes=(6, 0, 4))
        self._expect_mixture(self.make().proportions(context), context)

    def test_equal_runs_mix_the_same(self, tmp_path: Path) -> None:
        """Equal contexts give identical proportions, whatever the global random states are."""
        problem = self._runs_differ(tmp_path)
        if problem is not None:
            raise AssertionError(
                f"two equal runs differ: {problem}; random numbers come from (context.seed, context.round) alone"
            )

    def test_draws_follow_seed_and_round(self, tmp_path: Path) -> None:
        """A mixer that draws gives other proportions for another seed and in another round."""
        if not self.draws:
            raise SkipTest("the mixer does not claim to draw (draws = False)")
        first = self.make().proportions(self.context(tmp_path))
        for what, changes in {"seed": {"seed": 1}, "round": {"round": 2}}.items():
            if np.array_equal(self.make().proportions(self.context(tmp_path, **changes)), first):
                raise AssertionError(f"another {what} gives the same proportions, {first.tolist()}")

    def test_a_resumed_run_mixes_the_same(self, tmp_path: Path) -> None:
        """A new mixer that loads ``state_dict`` goes on as the old one would have; the state is JSON."""
        mixer, successor = self.make(), self.make()
        self._rounds(mixer, tmp_path, [1])
        try:
            state = json.dumps(mixer.state_dict(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"state_dict() is not JSON: {error}") from error
        expected = self._rounds(mixer, tmp_path, [2, 3])
        successor.load_state_dict(json.loads(state))
        found = self._rounds(successor, tmp_path, [2, 3])
        for number, (one, other) in enumerate(zip(found, expected, strict=True), start=2):
            self._expect_same(one, other, f"round {number} of a run that was resumed after round 1", tmp_path)

    def test_ranks_play_no_part(self, tmp_path: Path) -> None:
        """All ranks return the same, and the same as a single process does, whatever their number."""
        expected = self._rounds(self.make(), tmp_path, [1, 2])
        for count in (2, 3):
            found = run_ranks(count, lambda ranks: self._rounds(self.make(), tmp_path, [1, 2], ranks=ranks))
            for number, alone in enumerate(expected):
                self._expect_same(found[0][number], alone, f"on {count} ranks", tmp_path, self.tolerance)
                for rank in range(1, count):
                    what = f"on rank {rank} of {count}, beside rank 0"
                    self._expect_same(found[rank][number], found[0][number], what, tmp_path)

    def test_needs_what_it_says(self, tmp_path: Path) -> None:
        """Without ``needs_losses`` the losses of training play no part: there may be none."""
        if self.make().needs_losses:
            raise SkipTest("the mixer says that it reads losses (needs_losses = True)")
        expected = self.make().proportions(self.context(tmp_path))
        count = len(self.context(tmp_path).domains)
        nothing = DomainLosses(np.zeros(count), np.zeros(count, dtype=np.int64))
        found = self.make().proportions(self.context(tmp_path, losses=nothing))
        if not np.array_equal(found, expected):
            raise AssertionError(
                f"without losses the proportions are {found.tolist()}, with losses {expected.tolist()}: "
                "needs_losses = True says that they are read"
            )

    def test_leaves_no_trace(self, tmp_path: Path) -> None:
        """Weights, gradients, hooks, train/eval mode and global random states stay as they were."""
        context = self.context(tmp_path)
        context.model.train()
        trace = Trace(context.model)
        self.make().proportions(context)
        changes = sorted(trace.changes())
        if changes:
            raise AssertionError(f"the mixture changed {'; '.join(changes[:5])}")

    def test_says_what_it_did(self, tmp_path: Path) -> None:
        """``report`` is JSON before the first mixture and after each; ``measured_rows`` is a number of rows."""
        mixer = self.make()
        context = self.context(tmp_path)
        reports = [mixer.report()]
        mixer.proportions(context)
        reports.append(mixer.report())
        try:
            json.dumps(reports, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"report() is not JSON: {error}: {reports!r}") from error
        rows = mixer.measured_rows(context.measured_domains)
        if not isinstance(rows, int) or rows < 0:
            raise AssertionError(f"measured_rows() is {rows!r}, expected a number of rows")

    def test_can_be_closed_at_any_time(self, tmp_path: Path) -> None:
        """``close`` raises nothing before a mixture, after one, and when it is called again."""
        self.make().close()
        mixer = self.make()
        mixer.proportions(self.context(tmp_path))
        mixer.close()
        mixer.close()

    def _expect_mixture(self, found: Any, context: MixtureContext) -> None:
        try:
            check_mixture(found, context.domains, self.make().name, context.ranks)
        except SelectionError as error:
            raise AssertionError(str(error)) from error

    def _rounds(
        self, mixer: Mixer[Any], folder: Path, rounds: Sequence[int], **changes: Any
    ) -> list[NDArray[np.float64]]:
        """Mixtures of some rounds, one after the other; ``check`` comes before the first."""
        contexts = [self.context(folder, round=number, **changes) for number in rounds]
        mixer.check(replace(contexts[0], step=0, round=0))
        return [mixer.proportions(context) for context in contexts]

    def _runs_differ(self, tmp_path: Path) -> str | None:
        found = []
        for seed in (1, 2):
            with seeded_globals(seed):
                found.append(self.make().proportions(self.context(tmp_path)))
        return None if np.array_equal(found[0], found[1]) else f"{found[0].tolist()} and {found[1].tolist()}"

    def _expect_same(
        self,
        found: NDArray[np.float64],
        expected: NDArray[np.float64],
        what: str,
        tmp_path: Path,
        tolerance: float = 0.0,
    ) -> None:
        """Raise unless two mixtures are the same; a mixer without determinism fails only the test of that."""
        if np.allclose(found, expected, rtol=tolerance, atol=tolerance):
            return
        if self._runs_differ(tmp_path) is not None:
            raise SkipTest("equal runs differ already: see test_equal_runs_mix_the_same")
        raise AssertionError(f"{what}: {found.tolist()}, expected {expected.tolist()}")
