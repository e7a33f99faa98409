from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataflex.data.dataset import TokenizedDataset
from dataflex.evaluation.comparison import Comparison, Scored
from dataflex.offline.selection import OfflineSelection, RowSource
from dataflex.rollouts import Rollout
from dataflex.selectors.base import Selection
from dataflex.testing import tiny_context, tiny_dataset
from dataflex.utils.notebook import SHOWN_ROWS, html_table

HOSTILE = "<script>alert(1)</script>\x1b[2J" + "x" * 10_000


@pytest.fixture(scope="module")
def dataset() -> TokenizedDataset:
    """1,000 samples, of which the first, 900, holds what must not act."""
    examples = list(tiny_dataset(1000))
    turns = ({"role": "user", "content": HOSTILE}, {"role": "assistant", "content": "yes"})
    examples[900] = replace(examples[900], sample=replace(examples[900].sample, messages=turns, id=HOSTILE))
    return TokenizedDataset(examples)


@pytest.fixture
def chosen(dataset: TokenizedDataset) -> OfflineSelection:
    rows = [{"instruction": "long" * 1000, "output": ""}] * 1000
    return OfflineSelection(
        np.arange(900, 880, -1),
        np.arange(1000.0),
        "less",
        5,
        1,
        {"seconds": {"x": 1.0}},
        candidates=dataset,
        source=RowSource(rows),
    )


def test_a_selection_at_the_end_of_a_cell_is_a_line_and_a_table(chosen: OfflineSelection) -> None:
    assert repr(chosen) == "OfflineSelection(20 of 1,000 rows by less at step 5, scores 881 to 900)"
    page = chosen._repr_html_()
    assert len(page) < 3000
    assert page.count("<tr>") == 1 + SHOWN_ROWS
    assert "... 15 more" in page
    assert "<script" not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;" in page


def test_a_selection_as_a_table(chosen: OfflineSelection, dataset: TokenizedDataset) -> None:
    table = chosen.to_pandas()
    assert list(table.columns) == ["rank", "index", "score", "id", "row", "source", "prompt", "answer"]
    assert table["index"].tolist() == chosen.indices.tolist()
    assert table["score"].tolist() == [float(index) for index in range(900, 880, -1)]
    assert table["rank"].tolist() == list(range(20))
    assert table["answer"].tolist() == [dataset.samples[index].reference for index in range(900, 880, -1)]
    assert table["prompt"][0] == HOSTILE


def test_a_selection_without_data_or_scores() -> None:
    selection = Selection(np.array([3, 1]), None, "random", 0, 1)
    assert repr(selection) == "Selection(2 rows by random at step 0)"
    assert selection.to_pandas()["score"].isna().all()
    assert "<td>3</td><td>-</td>" in selection._repr_html_()
    assert repr(Selection(np.array([], dtype=np.int64), np.zeros(3), "x", 0, 1)).endswith("0 of 3 rows by x at step 0)")


def test_a_dataset_says_how_large_it_is(dataset: TokenizedDataset) -> None:
    assert repr(dataset).startswith("TokenizedDataset(1,000 of 1,000 samples, ")
    assert len(repr(dataset)) < 200
    assert "... 995 more" in dataset._repr_html_()
    table = dataset.to_pandas()
    assert table["tokens"].tolist() == dataset.lengths
    assert table["learnt"].tolist() == [example.num_labels for example in dataset]
    assert len(repr(dataset[900])) < 200
    assert "\x1b" not in repr(dataset[900])


def test_what_holds_data_does_not_print_it(tmp_path: Path, chosen: OfflineSelection) -> None:
    assert repr(chosen.source) == "RowSource(list of 1,000 rows)"
    assert repr(RowSource(["a.jsonl", "b"])) == "RowSource(['a.jsonl', 'b'])"
    assert repr(tiny_context(tmp_path)).startswith("SelectionContext(step 2, round 1 of ")
    answers = [Rollout("a", 0, [1] * 1000, [0.0] * 1000, True, "text" * 1000)]
    assert len(repr(Comparison("d", 1, 1, [], [Scored("base", {}, answers)]))) < 100


def test_cells_are_bounded() -> None:
    page = html_table("t", ["a"], [["y" * 1000]], 1)
    assert len(page) < 300
    assert "more" not in page
