"""Why a row has its score, and what two runs have in common."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import dataflex as df
from dataflex.cli.app import cli
from dataflex.curriculum.selection_file import write_selection
from dataflex.curriculum.text_groups import most_similar
from dataflex.errors import DataError
from dataflex.gradients.pulls import score_parts
from dataflex.selectors.base import Selection
from dataflex.testing import tiny_dataset


def select(folder: Path, step: int, chosen: list[int], scores: list[float], rows: int = 6) -> None:
    found = Selection(np.array(chosen), np.array(scores), "less", step, 1)
    write_selection(folder / "selections" / f"step-{step}.parquet", found, tiny_dataset(rows, seed=2), "task")


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs over six rows, two selections each."""
    one, other = tmp_path / "one", tmp_path / "other"
    select(one, 2, [0, 1, 2], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    select(one, 5, [5, 1], [0.1, 0.5, -np.inf, 0.3, 0.2, 0.6])
    select(other, 2, [0, 1, 2], [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    select(other, 5, [1, 0], [0.5, 0.6, 0.4, 0.3, 0.2, 0.1])
    return one, other


def test_a_row_has_its_score_and_rank_at_each_selection(runs: tuple[Path, Path]) -> None:
    ids = [example.sample.id for example in tiny_dataset(6, seed=2)]
    best, named, worst = df.explain(runs[0], [ids[2]], top=1, lowest=1, targets=False)
    assert [story.place for story in (best, named, worst)] == [2, 5, 0]
    rows = best.tables["scores"].to_pylist()
    assert rows[0] == {"step": 2, "score": 0.4, "rank": 3, "at or below": pytest.approx(4 / 6), "chosen": "as number 3"}
    assert rows[1] == {"step": 5, "score": None, "rank": None, "at or below": None, "chosen": "no"}
    assert df.explain(runs[0], [4], targets=False)[0].tables["scores"].to_pylist()[1]["rank"] == 4
    with pytest.raises(DataError, match="no row has the id 'nobody'"):
        df.explain(runs[0], ["nobody"])
    with pytest.raises(DataError, match="no selection at step 3"):
        df.explain(runs[0], [0], step=3)


def test_what_cannot_be_said_has_its_reason(runs: tuple[Path, Path]) -> None:
    (story,) = df.explain(runs[0], top=1)
    assert story.unknown == [f"the targets that pull it are not known: there is no config.yaml in {runs[0]}"]
    done = CliRunner().invoke(cli, ["explain", str(runs[0]), "--top", "1"], catch_exceptions=False)
    assert "as number 1" in done.stdout
    assert "there is no config.yaml" in done.stdout
    assert CliRunner().invoke(cli, ["explain", str(runs[0])]).exit_code == 2


def test_two_runs_have_rows_and_an_order_in_common(runs: tuple[Path, Path]) -> None:
    tables = df.Report(runs[0]).diff(df.Report(runs[1]))
    first, second = tables["selections"].to_pylist()
    assert (first["both"], first["only the first"], first["overlap"], first["order"]) == (3, 0, 1.0, pytest.approx(1))
    assert (second["both"], second["only the first"], second["only the second"]) == (1, 1, 1)
    assert second["overlap"] == 0.5
    # Without the row of -inf: ranks 0 3 2 1 4 and 3 4 2 1 0, squared differences 9 1 0 0 16.
    assert second["order"] == pytest.approx(1 - 6 * 26 / (5 * 24))
    ids = [example.sample.id for example in tiny_dataset(6, seed=2)]
    only = {(row["only"], row["id"]) for row in tables["rows"].to_pylist()}
    assert only == {("the first", ids[5]), ("the second", ids[0])}
    done = CliRunner().invoke(cli, ["diff", *map(str, runs), "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["selections"]["rows"][1][5] == 0.5


def test_runs_of_other_data_are_not_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = tiny_dataset(9, seed=2).select([8])
    chosen = Selection(np.array([0]), None, "x", 1, 1)
    write_selection(tmp_path / "third" / "selections" / "step-1.parquet", chosen, dataset, "task")
    with pytest.raises(DataError, match="no candidate in common"):
        df.Report(runs[0]).diff(df.Report(tmp_path / "third"))


def test_parts_add_up_to_the_score_of_each_rule() -> None:
    cosines = torch.randn(4, 6, dtype=torch.float64)
    groups = ["a", "b", "a", "b", "b", "a"]
    assert torch.allclose(score_parts(cosines, "mean", groups).sum(1), cosines.mean(1))
    assert torch.allclose(score_parts(cosines, "max", groups).sum(1), cosines.amax(1))
    by_task = torch.stack([cosines[:, [0, 2, 5]].mean(1), cosines[:, [1, 3, 4]].mean(1)])
    assert torch.allclose(score_parts(cosines, "task_max", groups).sum(1), by_task.amax(0))
    cosines[:, 1] = torch.nan
    assert torch.allclose(score_parts(cosines, "mean", groups).sum(1), cosines[:, [0, 2, 3, 4, 5]].mean(1))


def test_the_most_similar_rows_share_the_most_telling_words() -> None:
    dataset = tiny_dataset(40, seed=1)
    found = most_similar(dataset, 3, 40)
    likeness = [value for _, value in found]
    assert likeness == sorted(likeness, reverse=True)
    assert 0 < likeness[-1] <= likeness[0] <= 1 + 1e-12
    assert 3 not in [place for place, _ in found]
    task = dataset[3].sample.metadata["task"]
    assert dataset[found[0][0]].sample.metadata["task"] == task
