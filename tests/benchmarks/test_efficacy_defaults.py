"""Defaults are what the published table chose, and the page says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from efficacy import __main__ as program
from efficacy import defaults
from efficacy.cells import Bench, Cell
from efficacy.page import between
from efficacy.protocol import Protocol
from efficacy.sets import SETS
from efficacy.store import Store


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict:
    """The ablations' cells as the repository keeps them."""
    wanted = SETS["ablations"]
    protocol = Protocol(wanted.sizes, learning_rate=wanted.learning_rate)
    store = Store(tmp_path_factory.mktemp("empty"), program.PUBLISHED)
    bench = Bench(protocol, wanted.most, Path("no model"), None, store)
    return {cell: result for cell in wanted.cells if (result := bench.find(cell)) is not None}


def test_no_other_value_beats_a_default(published):
    measured = list(defaults.comparisons(published))
    assert [f"{choice.component}.{choice.parameter}: {value}" for choice, value, of in measured if of.beaten] == []
    without = [f"{choice.component}.{choice.parameter}: {value}" for choice, value, of in measured if not of.pools]
    assert without == ["nice.reference_answer: none"]  # it stopped: no answer earned anything


def test_the_page_shows_the_defaults_of_this_version(published):
    assert between(program.PAGE, "defaults") == defaults.table(published)


def test_every_parameter_that_changes_a_choice_is_measured_or_has_a_source():
    named = {(name, key) for name, config in defaults.CONFIGS.items() for key in config.model_fields}
    measured = {(choice.component, choice.parameter) for choice in defaults.MEASURED}
    assert measured | set(defaults.SOURCES) == {pair for pair in named if pair[1] not in defaults.TECHNICAL}
    assert not measured & set(defaults.SOURCES)


def test_another_value_beats_a_default_only_in_every_pool_and_at_a_bearable_cost():
    def outcome(own: list[float], other: list[float], cost: float = 1.0, size: float = 1.0) -> defaults.Comparison:
        auc = np.array([own, other]).T
        return defaults.Comparison(len(own), auc, np.full_like(auc, 0.5), (1.0, cost), size)

    assert outcome([0.97, 0.98], [0.98, 0.98]).beaten
    assert not outcome([0.97, 0.98], [0.99, 0.979]).beaten  # worse in one pool
    assert not outcome([0.97, 0.98], [0.972, 0.982]).beaten  # too little
    assert not outcome([0.97, 0.98], [0.98, 0.98], cost=2.5).beaten
    assert not outcome([0.97, 0.98], [0.98, 0.98], size=4.0).beaten
    assert not outcome([], []).beaten


def test_both_values_are_compared_where_both_were_measured():
    line = {"auc": 0.9, "auc_wrong": 0.8, "choice_processor": 3.0}
    found = {
        Cell("a", 1, "kinds", 0.1): line,
        Cell("a", 2, "kinds", 0.1): line,
        Cell("b", 1, "kinds", 0.1): {**line, "auc": 0.95},
        Cell("b", 2, "kinds", 0.1): {"stopped": "no signal"},
        Cell("b", 1, "orders", 0.1): line,
    }
    outcome = defaults.compare(found, "a", "b")
    assert (outcome.pools, outcome.auc.tolist(), outcome.cost) == (1, [[0.9, 0.95]], (3.0, 3.0))
