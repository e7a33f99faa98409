from __future__ import annotations

import numpy as np
import pytest

from dataflex.curriculum.story import selection_statistics
from dataflex.errors import SelectionError
from dataflex.selectors.base import Selection
from dataflex.selectors.outcome import check_agreement, check_selection
from dataflex.training.outputs import write_model_card


def selection(indices, scores=None, **report):
    values = None if scores is None else np.array(scores)
    return Selection(np.array(indices, dtype=np.int64), values, "mine", 10, 2, report)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (selection([0, 1]), r"indices are int64\(2,\), expected int64\(3,\)"),
        (selection([0, 1, 1]), "indices repeat: 1 of 3"),
        (selection([0, 1, 5]), "indices reach from 0 to 5, there are 5 candidates"),
        (selection([-1, 1, 2]), "indices reach from -1 to 2"),
        (selection([0, 1, 2], scores=[0.0]), r"scores have shape \(1,\), expected \(5,\)"),
    ],
)
def test_wrong_selections_are_refused(found, problem):
    with pytest.raises(SelectionError, match=problem):
        check_selection(found, 5, 3)
    check_selection(selection([4, 0, 2], scores=[0.0] * 5), 5, 3)


class Several:
    """Ranks of which the others selected something else."""

    def __init__(self, *others):
        self.others = others

    def gather(self, value):
        return [value, *(value if other is None else other for other in self.others)]


def test_ranks_must_agree():
    check_agreement(selection([1, 2]), Several(None, None))
    with pytest.raises(SelectionError, match="selected other samples on rank 2 than on rank 0"):
        check_agreement(selection([1, 2]), Several(None, "another digest"))


def test_statistics_of_a_selection():
    found = selection([3, 1], scores=[0.0, 0.5, -np.inf, 1.0], seconds={"training gradients": 1.23456})
    assert selection_statistics(found, [1, 0], 2.34567) == {
        "selection_round": 2,
        "selected": 2,
        "selection_mean_score": 0.75,
        "selection_mean_score_of_all": 0.5,
        "selection_overlap": 0.5,
        "selection_seconds/training_gradients": 1.235,
        "selection_seconds/total": 2.346,
    }


def test_statistics_without_scores_and_before_the_second_selection():
    assert selection_statistics(selection([3, 1]), [], 1.0) == {
        "selection_round": 2,
        "selected": 2,
        "selection_seconds/total": 1.0,
    }


def test_the_model_card_shows_every_fact_as_text(tmp_path):
    folder = tmp_path / "*run*"
    facts = {"base_model": "a/b\x1b[2J", "task [x](http://e)": "one\n| two | <img src=x>"}
    write_model_card(folder, facts, [("What was chosen?", "3 of <b> rows")])
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "\x1b" not in card
    assert "# \\*run\\*" in card
    assert r"**What was chosen?** 3 of \<b\> rows" in card
    assert r"| task \[x\](http\://e) | one\\n\| two \| \<img src=x\> |" in card
