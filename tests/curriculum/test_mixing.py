"""Rows of a mixing run: exact numbers, no row twice before all came once, the same after a restart."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex.curriculum.curriculum import Loop
from dataflex.curriculum.mixing import Mixture, MixtureCurriculum
from dataflex.curriculum.schedule import Schedule
from dataflex.curriculum.step import RowLosses
from dataflex.data import ChatTemplate
from dataflex.errors import SelectionError
from dataflex.mixers.base import Mixer, MixerConfig, MixtureContext
from dataflex.mixers.domains import find_domains, largest_remainder
from dataflex.mixers.odm import OdmMixer
from dataflex.mixers.random import RandomMixer
from dataflex.testing import run_ranks, tiny_lora, tiny_model, tiny_tokenizer
from dataflex.utils.distributed import Ranks
from helpers.mixing import SIZES, domain_dataset

INITIAL = np.array([0.5, 0.2, 0.3])


class Given(Mixer[MixerConfig]):
    """Returns what it was given, and remembers what it saw."""

    Config = MixerConfig
    name = "given"

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.returned = returned
        self.seen: list[MixtureContext] = []

    def proportions(self, context: MixtureContext) -> Any:
        self.seen.append(context)
        return self.returned(context) if callable(self.returned) else self.returned


def curriculum(folder: Path, mixer: Mixer[Any], schedule: Schedule | None = None, **changes: Any) -> MixtureCurriculum:
    dataset = domain_dataset(changes.pop("sizes", None))
    mixture = Mixture(find_domains(dataset.samples, None, [*SIZES]), changes.pop("initial", INITIAL))
    settings: dict[str, Any] = {"global_batch": 7, "seed": 3, "output_dir": folder}
    return MixtureCurriculum(schedule or Schedule(2, 3, 4), mixer, mixture, dataset, **(settings | changes))


def loop(ranks: Ranks | None = None) -> Loop:
    tokenizer = tiny_tokenizer()
    template = ChatTemplate.load("chatml", tokenizer)
    return Loop(tiny_lora(tiny_model()), tokenizer, template, None, nullcontext, ranks or Ranks())


def losses(found: MixtureCurriculum, step: int) -> RowLosses:
    """Losses that differ from row to row and from step to step."""
    rows = np.array(found.rows(step))
    tokens = 1 + rows % 3
    return RowLosses((0.5 + rows / 10 + step) * tokens, tokens, np.ones(len(rows)))


def trained(found: MixtureCurriculum, stop: int, start: int = 0) -> list[list[int]]:
    """Rows of the steps ``start`` to ``stop``, with mixtures where they are due."""
    looping, taken = loop(), []
    for step in range(start, stop):
        phase = found.phase(step)
        if found.wants_selection(phase):
            found.select(phase, looping, step)
        taken.append(found.rows(step))
        work = found.step_work(step, [], looping)
        assert work is not None
        assert work.done(losses(found, step)) == {}
    return taken


@pytest.mark.parametrize("epochs", [1.0, 1.7])
def test_numbers_of_rows_are_the_largest_remainders_and_no_row_comes_early_again(tmp_path: Path, epochs: float) -> None:
    found = curriculum(tmp_path, RandomMixer(), num_train_epochs=epochs)
    steps = trained(found, found.total_steps)
    sequences: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for phase in found.phases:
        rows = [row for step in steps[phase.start : phase.stop] for row in step]
        counts = largest_remainder(found.proportions(phase), 7 * (phase.stop - phase.start))
        by_domain = [[row for row in rows if row in domain.rows] for domain in found.mixture.domains]
        assert [len(own) for own in by_domain] == counts.tolist()
        for number, own in enumerate(by_domain):
            sequences[number] += own  # in the order of phases; within one they are shuffled
    for number, domain in enumerate(found.mixture.domains):
        times = [sequences[number].count(row) for row in domain.rows]
        assert max(times) - min(times) <= 1


def test_within_a_domain_no_row_comes_twice_before_all_came_once(tmp_path: Path) -> None:
    """Phases of a single step, so that the order of phases is the order of the sequence up to one step."""
    found = curriculum(tmp_path, RandomMixer(concentration=5.0), Schedule(1, 1, 30), global_batch=3)
    steps = trained(found, 31)
    for domain in found.mixture.domains:
        own = [{*step} & {*domain.rows.tolist()} for step in steps]
        seen: set[int] = set()
        for rows in own:
            fresh = rows - seen
            if rows & seen:  # a second round may begin only where the first one ends
                assert seen | fresh == {*domain.rows.tolist()}
                seen = rows & seen
            else:
                seen |= rows


def test_the_first_phase_has_the_initial_mixture_and_later_ones_the_mixers(tmp_path: Path) -> None:
    mixer = Given(np.array([0.0, 0.25, 0.75]))
    found = curriculum(tmp_path, mixer)
    trained(found, 5)
    assert found.proportions(found.phases[0]).tolist() == INITIAL.tolist()
    assert found.counts(found.phases[1]).tolist() == [0, 5, 16]
    (context,) = mixer.seen
    assert (context.step, context.round, context.num_rounds) == (2, 1, 4)
    assert context.proportions.tolist() == INITIAL.tolist()
    without = curriculum(tmp_path / "no warm-up", mixer, Schedule(0, 2, 2))
    trained(without, 2)
    assert without.proportions(without.phases[0]).tolist() == INITIAL.tolist()
    assert len(mixer.seen) == 1


def test_losses_of_the_phase_that_ended_go_to_the_mixer_by_domain(tmp_path: Path) -> None:
    mixer = Given(INITIAL)
    found = curriculum(tmp_path, mixer)
    steps = trained(found, 6)
    sums, tokens = np.zeros(3), np.zeros(3, dtype=np.int64)
    for step in (0, 1):
        for row in steps[step]:
            (domain,) = [number for number, domain in enumerate(found.mixture.domains) if row in domain.rows]
            sums[domain] += (0.5 + row / 10 + step) * (1 + row % 3)
            tokens[domain] += 1 + row % 3
    np.testing.assert_allclose(mixer.seen[0].losses.sums, sums, rtol=1e-12)
    assert mixer.seen[0].losses.tokens.tolist() == tokens.tolist()
    assert len(mixer.seen) == 2
    assert mixer.seen[1].losses.tokens.sum() == sum(1 + row % 3 for step in steps[2:5] for row in step)


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5, 7])
@pytest.mark.parametrize("make", [RandomMixer, OdmMixer])
def test_a_restart_goes_on_with_the_same_rows(tmp_path: Path, make: type[Mixer[Any]], stop: int) -> None:
    unbroken = curriculum(tmp_path, make())
    expected = trained(unbroken, unbroken.total_steps)
    first, second = curriculum(tmp_path, make()), curriculum(tmp_path, make())
    assert trained(first, stop) == expected[:stop]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert trained(second, second.total_steps, stop) == expected[stop:]
    assert json.dumps(second.state_dict()) == json.dumps(unbroken.state_dict())


def test_without_shuffling_domains_take_turns_by_their_shares(tmp_path: Path) -> None:
    initial = np.array([0.5, 0.25, 0.25])
    found = curriculum(tmp_path, Given(INITIAL), Schedule(2), global_batch=4, shuffle=False, initial=initial)
    (first, second) = trained(found, 2)
    assert first == [0, 12, 20, 1]
    assert second == [2, 13, 21, 3]


def test_a_mixture_is_written_said_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = curriculum(tmp_path, Given(np.array([0.25, 0.5, 0.25])))
    with caplog.at_level("INFO", logger="dataflex"):
        trained(found, 2)
        statistics = found.select(found.phases[1], loop(), 2)
    assert (statistics["mixture_round"], statistics["mixture/b"]) == (1, 0.5)
    assert found.made == {"selections": 0, "mixtures": 1}
    assert "mixture at step 2 (given): b 50.0%, a 25.0%, c 25.0%" in caplog.text
    facts = json.loads((tmp_path / "mixtures" / "step-2.json").read_text(encoding="utf-8"))
    assert facts["domains"] == ["a", "b", "c"]
    assert facts["proportions"] == [0.25, 0.5, 0.25]
    assert (sum(facts["counts"]), facts["counts"][1]) == (21, 11)
    assert all(value > 0 for value in facts["losses_before"])
    assert json.loads((tmp_path / "mixtures" / "step-0.json").read_text(encoding="utf-8"))["mixer"] is None


def test_rows_wait_for_their_mixture(tmp_path: Path) -> None:
    found = curriculum(tmp_path, Given(INITIAL))
    with pytest.raises(SelectionError, match="the mixture of steps 0 to 1 has not been made"):
        found.rows(0)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (np.array([0.5, 0.5]), "expected float64"),
        (np.array([1, 0, 0]), "expected float64"),
        ([0.5, 0.25, 0.26], "sum to 1"),
        (np.array([1.5, -0.5, 0.0]), "at least 0"),
        (np.array([np.nan, 0.5, 0.5]), "finite"),
        (np.array([0.5, 0.25, 0.25]), "a domain without rows"),
    ],
)
def test_what_is_no_mixture_is_refused(tmp_path: Path, returned: Any, message: str) -> None:
    found = curriculum(tmp_path, Given(returned), sizes={"a": 4, "b": 3}, initial=np.array([0.5, 0.5, 0.0]))
    trained(found, 2)
    with pytest.raises(SelectionError, match=message) as caught:
        found.select(found.phases[1], loop(), 2)
    assert "mixer 'given' returned" in str(caught.value)


def test_ranks_that_disagree_are_refused_on_all(tmp_path: Path) -> None:
    def work(ranks: Ranks) -> str:
        mixer = Given(lambda context: np.array([0.5, 0.5, 0.0] if context.ranks.index else [0.5, 0.0, 0.5]))
        found = curriculum(tmp_path, mixer)
        looping = loop(ranks)
        found.select(found.phases[0], looping, 0)
        with pytest.raises(SelectionError) as caught:
            found.select(found.phases[1], looping, 2)
        return str(caught.value)

    assert all("other proportions on rank 1 than on rank 0" in text for text in run_ranks(2, work))
