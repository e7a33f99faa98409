"""Training on mixtures of domains: a schedule joined with a mixer, which says before each phase what share each gets.

The first phase has the initial mixture. A phase takes its numbers of rows by largest remainder; within a domain the
next rows of an endless permutation that goes on from phase to phase, so that no row comes twice before all came once.
Everything follows from the seed and the mixtures so far, which are the state that a resumed loop needs, beside the
losses of the phase that it is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataflex.curriculum import story
from dataflex.curriculum.curriculum import Curriculum, Loop
from dataflex.curriculum.schedule import Phase, Schedule, random_order
from dataflex.curriculum.step import RowLosses, StepWork
from dataflex.errors import SelectionError
from dataflex.mixers.base import DomainLosses, Mixer, MixtureContext
from dataflex.mixers.domains import Domain, largest_remainder
from dataflex.mixers.outcome import check_mixture
from dataflex.utils.files import write_json
from dataflex.utils.progress import Stopwatch

if TYPE_CHECKING:
    from dataflex.data.dataset import Example, TokenizedDataset

MIXTURE = "mixture"
"""Name of the stopwatch's phase in which mixtures are counted."""
_DOMAIN_STREAM, _PHASE_STREAM = 6, 7


@dataclass(frozen=True)
class Mixture:
    """What a run mixes.

    Attributes:
        domains: The K domains of the candidates.
        initial: ``(K,)`` proportions of the first phase.
        measured_dataset: Rows to measure domains by; None: the candidates.
        measured_domains: The K domains of those.
    """

    domains: tuple[Domain, ...]
    initial: NDArray[np.float64]
    measured_dataset: TokenizedDataset | None = None
    measured_domains: tuple[Domain, ...] = ()


class MixtureCurriculum(Curriculum):
    """Decides which rows every step trains on by proportions of domains.

    Args:
        schedule: When to mix anew.
        mixer: Gives the proportions of every phase but the first.
        mixture: Domains and initial proportions.
        train_dataset: n candidates.
        num_train_epochs: How often the schedule is gone through.
        global_batch: Rows of one step, of all processes together.
        seed: Seed of the draws and of the mixer.
        output_dir: Folder of the run: ``mixtures/``.
        shuffle: False: each domain's rows come in their own order, and the domains take turns by their shares.

    Attributes:
        mixer: The mixer.
        mixture: What it mixes.
        losses: ``(K,)`` losses of the current phase so far.
    """

    def __init__(
        self,
        schedule: Schedule,
        mixer: Mixer[Any],
        mixture: Mixture,
        train_dataset: TokenizedDataset,
        *,
        num_train_epochs: float = 1.0,
        global_batch: int,
        seed: int,
        output_dir: Path,
        shuffle: bool = True,
    ) -> None:
        super().__init__(
            schedule,
            None,
            train_dataset,
            num_train_epochs=num_train_epochs,
            global_batch=global_batch,
            seed=seed,
            output_dir=output_dir,
            shuffle=shuffle,
        )
        self.mixer, self.mixture = mixer, mixture
        self.losses = self._no_losses()
        self._mixtures: dict[int, list[float]] = {}  # by the first step of their phase
        self._losses_of = 0  # the first step of the phase that the losses are of
        self._domain_of = np.zeros(len(train_dataset), dtype=np.int64)
        for number, domain in enumerate(mixture.domains):
            self._domain_of[domain.rows] = number

    @property
    def names(self) -> list[str]:
        """The domains' names."""
        return [domain.name for domain in self.mixture.domains]

    @property
    def needs_losses(self) -> bool:
        """Whether the mixer reads them."""
        return self.mixer.needs_losses

    @property
    def made(self) -> dict[str, int]:
        """Mixtures so far, the initial one left out."""
        return {"selections": 0, "mixtures": self.round}

    def plan(self) -> str:
        """How long the run is, and where it mixes, as a line."""
        return story.plan_line(self.phases, self.global_batch, len(self.train_dataset), "mixture")

    def check(self, loop: Loop) -> None:
        """Let the mixer raise, before any work is lost, if its mixtures cannot be made."""
        self.mixer.check(self._mixture_context(loop, step=0, round_number=0))

    def wants_selection(self, phase: Phase) -> bool:
        """Whether the mixture of a phase is still to be made: of each phase with a round, and of the first."""
        return (phase.round is not None or phase.start == 0) and phase.start not in self._mixtures

    def select(self, phase: Phase, loop: Loop, step: int, watch: Stopwatch | None = None) -> dict[str, float | int]:
        """Make the mixture of a phase: check it, write ``mixtures/step-STEP.json``, say it.

        Every process calls it.

        Args:
            phase: The phase.
            loop: The loop as it is.
            step: Steps taken so far.
            watch: Counts the seconds of the mixer as ``mixture``.

        Returns:
            Numbers about the mixture, for logs and trackers: ``mixture_round`` and ``mixture/DOMAIN``, its share.

        Raises:
            DataflexError: Whatever the mixer raises.
            SelectionError: It returned no proportions, or others on another rank.
        """
        watch = watch or Stopwatch()
        begun = watch.seconds.get(MIXTURE, 0.0)
        round_number = phase.round or 0
        with watch.phase(MIXTURE):
            proportions = self.mixture.initial
            if phase.start > 0:
                proportions = self.mixer.proportions(self._mixture_context(loop, step=step, round_number=round_number))
        proportions = check_mixture(proportions, self.mixture.domains, self.mixer.name, loop.ranks)
        seconds = watch.seconds[MIXTURE] - begun
        ended = self.losses
        self.round = round_number
        self._mixtures[phase.start] = proportions.tolist()
        self._ordered = None
        loop.ranks.on_main(lambda: self._write(phase, step, ended))
        statistics: dict[str, float | int] = {"mixture_round": round_number}
        statistics |= {f"mixture/{name}": share for name, share in zip(self.names, proportions.tolist(), strict=True)}
        if loop.ranks.is_main:
            story.log_mixture(self.names, proportions, step, self.mixer.name if phase.start else "the initial one")
        return {**statistics, "mixture_seconds": round(seconds, 3)}

    def step_work(self, step: int, examples: Sequence[Example], loop: Loop) -> StepWork | None:
        """Count the losses of the step's rows for their domains."""
        del examples, loop
        return _Counting(self, step)

    def count_losses(self, step: int, found: RowLosses) -> None:
        """Add the losses of the step that came after ``step`` steps."""
        start = self.phase(step).start
        if start != self._losses_of:
            self.losses, self._losses_of = self._no_losses(), start
        domains = self._domain_of[self.rows(step)]
        np.add.at(self.losses.sums, domains, found.sums)
        np.add.at(self.losses.tokens, domains, found.tokens)

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state: ``round``, and ``component``: the mixtures so far, losses of the phase, the mixer's own."""
        component = {
            "mixtures": {str(start): list(shares) for start, shares in self._mixtures.items()},
            "losses": {
                "phase": self._losses_of,
                "sums": self.losses.sums.tolist(),
                "tokens": self.losses.tokens.tolist(),
            },
            "mixer": self.mixer.state_dict(),
        }
        return {"round": self.round, "indices": [], "selector": {}, "component": component}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        component = state["component"]
        self._take(state["round"], [])
        self._mixtures = {int(start): list(shares) for start, shares in component["mixtures"].items()}
        losses = component["losses"]
        self._losses_of = losses["phase"]
        self.losses = DomainLosses(
            np.array(losses["sums"], dtype=np.float64), np.array(losses["tokens"], dtype=np.int64)
        )
        self.mixer.load_state_dict(component["mixer"])

    def close(self) -> None:
        """Free what the mixer holds."""
        self.mixer.close()

    def proportions(self, phase: Phase) -> NDArray[np.float64]:
        """``(K,)`` proportions of a phase; one of random rows that is not the first has those of the phase before.

        Raises:
            SelectionError: Its mixture has not been made.
        """
        if self.wants_selection(phase):
            raise SelectionError(
                f"the mixture of steps {phase.start} to {phase.stop - 1} has not been made",
                hint="call select at the boundary, before the rows are asked for",
            )
        start = max(start for start in self._mixtures if start <= phase.start)
        return np.array(self._mixtures[start])

    def counts(self, phase: Phase) -> NDArray[np.int64]:
        """``(K,)`` rows of each domain that a phase trains on."""
        return largest_remainder(self.proportions(phase), self._rows_of(phase))

    def _order(self, phase: Phase) -> NDArray[np.int64]:
        """Positions of all rows of a phase, in the order of training."""
        before = [self.counts(other) for other in self.phases if other.stop <= phase.start]
        counts = self.counts(phase)
        drawn = np.zeros_like(counts)
        for other in before:
            drawn += other
        parts, places = [], []
        for number, (domain, count) in enumerate(zip(self.mixture.domains, counts.tolist(), strict=True)):
            if count:
                order = random_order(
                    len(domain.rows),
                    int(drawn[number]),
                    count,
                    seed=self.seed,
                    shuffle=self._shuffle,
                    stream=(_DOMAIN_STREAM, number),
                )
                parts.append(domain.rows[order])
                places.append((np.arange(count) + 0.5) / count)
        rows = np.concatenate(parts)
        if not self._shuffle:
            return rows[np.argsort(np.concatenate(places), kind="stable")]
        return np.random.default_rng([self.seed, _PHASE_STREAM, phase.start]).permutation(rows)

    def _no_losses(self) -> DomainLosses:
        count = len(self.mixture.domains)
        return DomainLosses(np.zeros(count), np.zeros(count, dtype=np.int64))

    def _write(self, phase: Phase, step: int, ended: DomainLosses) -> None:
        means = [None if np.isnan(value) else float(value) for value in ended.means()]
        facts = {
            "mixer": self.mixer.name if phase.start else None,
            "step": step,
            "round": phase.round or 0,
            "domains": self.names,
            "rows": [len(domain.rows) for domain in self.mixture.domains],
            "proportions": self.proportions(phase).tolist(),
            "counts": self.counts(phase).tolist(),
            "losses_before": means,
            "report": self.mixer.report() if phase.start else {},
        }
        write_json(self.output_dir / "mixtures" / f"step-{step}.json", facts)

    def _mixture_context(self, loop: Loop, *, step: int, round_number: int) -> MixtureContext:
        current = [start for start in self._mixtures if start <= step]
        mixture, given = self.mixture, self.mixture.measured_dataset
        return MixtureContext(
            model=loop.model,
            tokenizer=loop.tokenizer,
            train_dataset=self.train_dataset,
            measured_dataset=self.train_dataset if given is None else given,
            domains=mixture.domains,
            measured_domains=mixture.domains if given is None else mixture.measured_domains,
            proportions=np.array(self._mixtures[max(current)]) if current else mixture.initial,
            losses=self.losses,
            step=step,
            round=round_number,
            num_rounds=max((phase.round or 0 for phase in self.phases), default=0),
            seed=self.seed,
            output_dir=self.output_dir,
            autocast=loop.autocast,
            ranks=loop.ranks,
        )


class _Counting(StepWork):
    """Counts the losses of one step by domain."""

    def __init__(self, curriculum: MixtureCurriculum, step: int) -> None:
        self._curriculum, self._step = curriculum, step

    def done(self, losses: RowLosses) -> dict[str, float]:
        self._curriculum.count_losses(self._step, losses)
        return {}
