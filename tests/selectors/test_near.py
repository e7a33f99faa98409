from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataflex.curriculum.schedule import Schedule
from dataflex.data.dataset import TokenizedDataset
from dataflex.errors import ConfigError, SelectionError
from dataflex.retrieval.matrix import NearMatrix, sample_digests
from dataflex.selectors.near import NearSelector, best_ranks, places_of
from dataflex.testing import tiny_context, tiny_dataset
from helpers.runs import tiny_trainer

MATRIX = ((4, 1, 2, 5), (3, 4, 1, 0))
WALK = [4, 3, 1, 2, 5, 0]


def save(path: Path, dataset: TokenizedDataset, entries: Any = MATRIX) -> Path:
    rows = np.array([sample.row for sample in dataset.samples])
    NearMatrix(np.array(entries), rows, sample_digests(dataset.samples), {"encoder": {"name": "e"}}).save(path)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "top_indices.npy", tiny_dataset(12, seed=0))


def selected(selector: NearSelector, tmp_path: Path, **changes: Any) -> list[int]:
    found: list[int] = selector.select(tiny_context(tmp_path, **changes)).indices.tolist()
    return found


def test_each_update_takes_from_the_top_rank_by_rank(path: Path, tmp_path: Path) -> None:
    selector = NearSelector(indices_path=path)
    assert selected(selector, tmp_path, num_samples=4) == WALK[:4]
    assert selected(selector, tmp_path, num_samples=6, round=2) == WALK


def test_rows_are_compared_with_the_matrix_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A digest of every row costs seconds a million, and each update walks in an order of its own."""
    compared = []
    check_samples = NearMatrix.check_samples
    monkeypatch.setattr(NearMatrix, "check_samples", lambda *given: compared.append(check_samples(*given)))
    selector, context = NearSelector(indices_path=path), tiny_context(tmp_path, num_samples=4)
    for number in (1, 2, 3):
        selector.select(replace(context, round=number))
    assert len(compared) == 1


def test_where_rows_are_fewer_than_targets_chance_by_seed_decides_and_it_is_said(tmp_path: Path, caplog) -> None:
    dataset = tiny_dataset(12, seed=0)
    selector = NearSelector(indices_path=save(tmp_path / "m.npy", dataset, [[row] for row in range(12)]))
    with caplog.at_level(logging.WARNING):
        selector.check(tiny_context(tmp_path, num_samples=12))
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        selector.check(tiny_context(tmp_path, num_samples=3))
    assert "3 rows are asked for and there are 12 target rows" in caplog.text
    heard = [
        tuple(selected(selector, tmp_path, num_samples=3, seed=seed, round=round_number))
        for seed in range(4)
        for round_number in (1, 2)
    ]
    assert len(set(heard)) == len(heard)
    assert tuple(selected(selector, tmp_path, num_samples=3, seed=2, round=1)) == heard[4]
    assert len({row for rows in heard for row in rows}) >= 10


def test_advance_keeps_one_order_for_all_updates(tmp_path: Path) -> None:
    dataset = tiny_dataset(12, seed=0)
    path = save(tmp_path / "m.npy", dataset, [[row] for row in range(12)])
    selector = NearSelector(indices_path=path, advance=True)
    taken = [selected(selector, tmp_path, num_samples=4, seed=5, round=number) for number in (1, 2, 3)]
    assert sorted(row for rows in taken for row in rows) == list(range(12))


def test_best_ranks_are_those_of_a_search_row_by_row() -> None:
    draw = np.random.default_rng()
    rows = draw.permutation(60)[:40]  # row numbers of 40 candidates; the matrix knows others, and some beyond
    neighbors = np.stack([draw.permutation(70)[:9] for _ in range(5)])
    places = np.full(int(rows.max()) + 2, -1)
    places[rows] = np.arange(len(rows))
    ranks = [[rank for rank in range(9) if row in neighbors[:, rank].tolist()] for row in rows.tolist()]
    expected = [-min(found) if found else -np.inf for found in ranks]
    assert best_ranks(neighbors, places, len(rows)).tolist() == expected
    found = places_of(neighbors.ravel(), places).tolist()
    known = {row: place for place, row in enumerate(rows.tolist())}
    assert found == [known.get(row, -1) for row in neighbors.ravel().tolist()]


def test_scores_are_minus_the_best_rank(path: Path, tmp_path: Path) -> None:
    selection = NearSelector(indices_path=path).select(tiny_context(tmp_path))
    assert selection.scores is not None
    assert selection.scores.tolist() == [-3, -1, -2, 0, 0, -3, *[-np.inf] * 6]
    assert selection.report["distinct"] == 6
    assert json.dumps(dict(selection.report))


def test_advance_goes_on_where_the_last_update_stopped_and_over_a_resume(path: Path, tmp_path: Path) -> None:
    selector = NearSelector(indices_path=path, advance=True)
    assert selected(selector, tmp_path, num_samples=2) == WALK[:2]
    state = json.loads(json.dumps(selector.state_dict()))
    assert selected(selector, tmp_path, num_samples=3) == WALK[2:5]
    resumed = NearSelector(indices_path=path, advance=True)
    resumed.load_state_dict(state)
    assert selected(resumed, tmp_path, num_samples=3) == WALK[2:5]


def test_too_few_says_how_many_there_are_and_which_max_k_would_do(path: Path, tmp_path: Path) -> None:
    selector = NearSelector(indices_path=path)
    message = (
        r"8 samples are to be selected; the 2 x 4 neighbours in .*top_indices\.npy are 6 distinct rows of the "
        r"training set\n  hint: `dataflex near` with max_K: 8 is sure to do, about 6 may"
    )
    for step in (selector.check, selector.select):
        with pytest.raises(SelectionError, match=message):
            step(tiny_context(tmp_path, num_samples=8))
    selector.check(tiny_context(tmp_path, num_samples=6))


def test_the_max_k_that_is_sure_to_do_counts_rows_that_are_not_trained_on(path: Path, tmp_path: Path) -> None:
    fewer = tiny_dataset(12, seed=0).select([0, 1, 2, 5, 6, 7, 8, 9])
    with pytest.raises(SelectionError, match=r"are 4 distinct rows.*\n.*max_K: 9 is sure to do"):
        NearSelector(indices_path=path).select(tiny_context(tmp_path, num_samples=5, train_dataset=fewer))


def test_more_than_there_is_has_another_hint(path: Path, tmp_path: Path) -> None:
    selector = NearSelector(indices_path=path, advance=True)
    with pytest.raises(SelectionError, match=r"15 samples .* over all updates.*which has 12 rows\n.*advance: false"):
        selector.check(tiny_context(tmp_path, num_samples=5, num_rounds=3))


def test_advance_needs_the_rows_of_all_updates_before_training(path: Path, tmp_path: Path) -> None:
    advancing, repeating = (NearSelector(indices_path=path, advance=advance) for advance in (True, False))
    with pytest.raises(SelectionError, match=r"8 samples are to be selected over all updates .* are 6 distinct rows"):
        advancing.check(tiny_context(tmp_path, num_samples=4, num_rounds=2))
    advancing.check(tiny_context(tmp_path, num_samples=4, num_rounds=2, total_samples=6))  # the last update is cut
    repeating.check(tiny_context(tmp_path, num_samples=4, num_rounds=2))


def test_advance_beyond_the_end_is_an_error_of_that_update(path: Path, tmp_path: Path) -> None:
    selector = NearSelector(indices_path=path, advance=True)
    selector.select(tiny_context(tmp_path, num_samples=4))
    with pytest.raises(SelectionError, match="8 samples are to be selected over all updates"):
        selector.select(tiny_context(tmp_path, num_samples=4, round=2))


def test_rows_that_are_not_trained_on_are_skipped_and_positions_move_up(path: Path, tmp_path: Path) -> None:
    fewer = tiny_dataset(12, seed=0).select([0, 1, 2, 4, 5, 7])  # row 3 is gone: positions of 4 and 5 are 3 and 4
    assert selected(NearSelector(indices_path=path), tmp_path, num_samples=5, train_dataset=fewer) == [3, 1, 2, 4, 0]


def test_other_training_data_is_an_error_before_training(path: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SelectionError, match=r"searched in other data than this training set: \d+ of 12 samples differ"
    ):
        NearSelector(indices_path=path).check(tiny_context(tmp_path, train_dataset=tiny_dataset(12, seed=1)))


def test_a_bare_matrix_is_refused_or_taken_as_it_is(path: Path, tmp_path: Path, caplog) -> None:
    path.with_suffix(".json").unlink()
    with pytest.raises(SelectionError, match=r"top_indices\.json does not exist"):
        NearSelector(indices_path=path).check(tiny_context(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert selected(NearSelector(indices_path=path, verify=False), tmp_path) == WALK[:4]
    assert "taken unchecked (verify: false)" in caplog.text


def test_an_unchecked_matrix_must_at_least_be_in_range(tmp_path: Path) -> None:
    path = save(tmp_path / "m.npy", tiny_dataset(12, seed=0), [[0, 12]])
    with pytest.raises(SelectionError, match=r"names row 12, the training set ends with row 11"):
        NearSelector(indices_path=path, verify=False).check(tiny_context(tmp_path))


def test_a_missing_matrix_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"indices_path: .*nowhere\.npy does not exist; make .* `dataflex near`"):
        NearSelector(indices_path=tmp_path / "nowhere.npy", cache_dir=tmp_path)


@pytest.mark.integration
@pytest.mark.parametrize("advance", [False, True])
def test_a_training_run_takes_its_samples_from_the_matrix(advance: bool, tmp_path: Path) -> None:
    dataset = tiny_dataset(24, seed=0)
    entries = np.random.default_rng(0).permutation(24)[None]
    path = save(tmp_path / "m.npy", dataset, entries)
    trainer = tiny_trainer(
        tmp_path / "out",
        selector=NearSelector(indices_path=path, advance=advance),
        schedule=Schedule(warmup_step=1, update_step=2, update_times=2),
    )
    trainer.train()
    start = 8 if advance else 0
    assert trainer.state.indices == entries[0, start : start + 8].tolist()


def test_a_selection_that_cannot_fit_stops_the_run_before_its_first_step(tmp_path: Path) -> None:
    path = save(tmp_path / "m.npy", tiny_dataset(24, seed=0))
    trainer = tiny_trainer(tmp_path / "out", selector=NearSelector(indices_path=path))
    with pytest.raises(SelectionError, match="12 samples are to be selected"):
        trainer.train()
    assert not (tmp_path / "out").exists()
