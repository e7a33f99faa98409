"""Candidates at a budget: which rows are looked at, what the others are, and what a killed round finds again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dataflex
from dataflex.curriculum.selection_file import write_selection
from dataflex.errors import ConfigError, SelectionError
from dataflex.gradients.samples import SampleFeatures
from dataflex.gradients.similarity import top_k
from dataflex.offline.dry_run import dry_run
from dataflex.retrieval.matrix import NearMatrix, sample_digests
from dataflex.selectors.base import Selection, SelectionContext, Selector
from dataflex.selectors.candidates import CandidateConfig, CandidateSelector
from dataflex.selectors.less import LessSelector
from dataflex.selectors.rds import RdsSelector
from dataflex.testing import tiny_context, tiny_dataset, tiny_lora, tiny_model, tiny_tokenizer
from helpers.runs import tiny_nice

RDS = {"name": "rds", "keep": 0.5}


class RowSelector(CandidateSelector[CandidateConfig]):
    """Scores a candidate by its row number: the selection tells which rows it saw."""

    name: ClassVar[str] = "row"
    Config = CandidateConfig

    def work_dir(self, context: SelectionContext) -> Path:
        return context.output_dir

    def select_among(self, context: SelectionContext) -> Selection:
        scores = np.array([float(sample.row) for sample in context.train_dataset.samples])
        indices = np.argsort(-scores)[: context.num_samples]
        report = {"seconds": {"scores": 0.5}, "left_out": {"candidates of no use": 1}}
        return Selection(indices, scores, self.name, context.step, context.round, report)


@pytest.fixture(scope="module")
def module_context(tmp_path_factory: pytest.TempPathFactory) -> SelectionContext:
    folder = tmp_path_factory.mktemp("run")
    return tiny_context(folder, train_dataset=tiny_dataset(40, seed=3, distinct=True), num_samples=5)


def less(**params: Any) -> LessSelector:
    return LessSelector(**({"proj_dim": 256, "save_interval": 5} | params))


def looked_at(selection: Selection) -> list[int]:
    assert selection.scores is not None
    return np.flatnonzero(~np.isnan(selection.scores)).tolist()


@given(count=st.integers(5, 40), seed=st.integers(0, 2**32), number=st.integers(1, 50))
def test_so_many_different_rows_are_drawn_by_seed_and_round(module_context, count, seed, number):
    context = replace(module_context, seed=seed, round=number)
    found = RowSelector(candidates=count).select(context)
    rows = looked_at(found)
    assert len(rows) == count
    assert found.scores[rows].tolist() == rows  # each row's own score, in its own place
    assert found.indices.tolist() == sorted(rows, reverse=True)[:5]
    again = RowSelector(candidates=count).select(context)
    assert looked_at(again) == rows
    assert found.report["candidates"] == {"total": 40, "looked_at": count}


def test_every_row_is_drawn_sometimes_and_each_round_draws_anew(module_context):
    drawn = [looked_at(RowSelector(candidates=0.25).select(replace(module_context, round=n))) for n in range(1, 41)]
    assert len({tuple(rows) for rows in drawn}) == 40
    counts = np.bincount(np.concatenate(drawn), minlength=40)
    assert counts.min() > 0
    assert counts.sum() == 400


@pytest.mark.parametrize(("wanted", "count"), [("all", 40), (1.0, 40), ("100%", 40), (40, 40), ("25%", 10), (7, 7)])
def test_ways_to_say_how_many(module_context, wanted, count):
    assert len(looked_at(RowSelector(candidates=wanted).select(module_context))) == count


@pytest.mark.parametrize("wrong", [0, -3, 1.5, True, "half", "", float("nan"), float("inf"), [3], None])
def test_wrong_numbers_of_candidates(wrong):
    with pytest.raises(ConfigError, match="candidates: expected all, a number of rows or a share"):
        RowSelector(candidates=wrong)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"prefilter": "rds"}, "prefilter: expected {name: rds, keep: 0.25}"),
        ({"prefilter": {"name": "rds"}}, "prefilter.keep is required"),
        ({"prefilter": {"name": "rds", "keep": 1}}, "prefilter.keep: expected less than 1"),
        ({"prefilter": {"name": "rds", "keeps": 0.5, "keep": 0.5}}, "unknown key 'prefilter.keeps'"),
        ({"prefilter": {"name": "rdss", "keep": 0.5}}, "unknown selector 'rdss'; did you mean 'rds'?"),
        ({"prefilter": {"name": "less", "keep": 0.5}}, "less cannot go before itself"),
        ({"prefilter": {"name": "near", "keep": 0.5}}, "prefilter.params: indices_path is required"),
        ({"prefilter": {**RDS, "params": {"agregate": "max"}}}, "unknown key 'agregate'; did you mean 'aggregate'?"),
        ({"prefilter": {"name": "delta_loss", "keep": 0.5}, "candidates": 0.5}, "compares rounds row by row"),
        ({"prefilter": {**RDS, "params": {"cache_dir": "x"}}, "cache_dir": "x"}, "needs a cache_dir of its own"),
        (
            {"prefilter": {"name": "loss", "keep": 0.5, "params": {"replacement": True}}},
            "a prefilter keeps each once",
        ),
    ],
)
def test_a_prefilter_that_cannot_be_is_refused_when_it_is_named(params, text):
    with pytest.raises(ConfigError) as caught:
        less(**params)
    assert [line for line in caught.value.problems if text in line], caught.value.problems


def test_all_mistakes_at_once():
    with pytest.raises(ConfigError) as caught:
        less(prefilter={"name": "rds", "keep": 2, "params": {"batch_tokens": 0}}, proj_dimm=2)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"candidates": 4}, "candidates: 4 looks at 4 of 40 rows, and 5 are to be selected"),
        ({"candidates": 0.1}, "looks at 4 of 40 rows, and 5 are to be selected"),
        ({"candidates": 41}, "candidates: 41 rows are to be looked at, there are 40"),
        ({"prefilter": {"name": "random", "keep": 0.1}}, "leaves 4 of 40 rows, and 5 are to be selected"),
        ({"candidates": 8, "prefilter": RDS}, "leaves 4 of 8 rows, and 5 are to be selected"),
    ],
)
def test_fewer_rows_than_are_to_be_selected_are_refused_before_training(module_context, params, text):
    with pytest.raises(SelectionError, match=text):
        RowSelector(**params).check(replace(module_context, round=0, step=0))
    with pytest.raises(SelectionError, match=text):
        RowSelector(**params).select(module_context)


def test_a_prefilter_chooses_among_the_drawn_rows(module_context):
    drawn = looked_at(RowSelector(candidates=30).select(module_context))
    found = RowSelector(candidates=30, prefilter=RDS).select(module_context)
    rows = looked_at(found)
    among = replace(module_context, train_dataset=module_context.train_dataset.select(drawn), num_samples=15)
    expected = RdsSelector().select(among)
    assert rows == sorted(drawn[index] for index in expected.indices.tolist())
    assert found.report["candidates"] == {"total": 40, "looked_at": 15}
    facts = found.report["prefilter"]
    assert (facts["selector"], facts["of"], facts["kept"]) == ("rds", 30, 15)
    assert facts["report"]["candidates"]["total"] == 30
    assert {"prefilter: hidden states", "prefilter: scores", "prefilter: other", "scores"} <= set(
        found.report["seconds"]
    )
    assert found.report["left_out"]["candidates of no use"] == 1
    assert found.report["left_out"]["prefilter: candidates with hidden states that are not finite"] == 0


def test_scores_are_those_of_the_same_rows_alone(tmp_path):
    context = tiny_context(tmp_path / "a", train_dataset=tiny_dataset(16, distinct=True))
    found = less(candidates=10, prefilter={"name": "loss", "keep": 0.7}).select(context)
    rows = looked_at(found)
    assert len(rows) == 7
    alone = replace(context, train_dataset=context.train_dataset.select(rows), output_dir=tmp_path / "b")
    expected = less().select(alone)
    assert found.scores[rows].tolist() == expected.scores.tolist()
    assert found.indices.tolist() == [rows[index] for index in expected.indices.tolist()]


def test_exact_scores_of_some_rows_are_those_of_a_full_pass_and_are_found_again(tmp_path, monkeypatch):
    params = {"scoring": "exact", "proj_dim": 4096, "candidates": 10, "prefilter": {"name": "loss", "keep": 0.7}}
    context = tiny_context(tmp_path / "a", train_dataset=tiny_dataset(16, distinct=True))
    whole = less(scoring="exact", proj_dim=4096).select(replace(context, output_dir=tmp_path / "b"))
    found = less(**params).select(context)
    rows = looked_at(found)
    assert len(rows) == 7
    np.testing.assert_allclose(found.scores[rows], whole.scores[rows], rtol=0, atol=1e-6)
    assert found.indices.tolist() == [row for row in np.argsort(-whole.scores).tolist() if row in rows][:4]
    computed: list[int] = []
    plain = SampleFeatures._work
    monkeypatch.setattr(
        SampleFeatures,
        "_work",
        lambda self, items: (computed.extend(items if len(self) == 7 else ()), plain(self, items))[1],
    )
    again = less(**params).select(context)
    assert np.array_equal(again.scores, found.scores, equal_nan=True)
    assert computed == []
    later = less(**params).select(replace(context, round=2))
    assert looked_at(later) != rows
    assert {*computed} == {*range(7)}


def test_a_round_that_was_killed_looks_at_the_same_rows_and_uses_what_is_stored(tmp_path, monkeypatch):
    params = {"candidates": 14, "prefilter": RDS, "keep_features": "all"}
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(16, distinct=True))
    expected = less(**params).select(context)
    computed: list[int] = []
    plain = SampleFeatures.features
    monkeypatch.setattr(SampleFeatures, "features", lambda self, items: (computed.extend(items), plain(self, items))[1])
    again = less(**params).select(context)
    assert np.array_equal(again.scores, expected.scores, equal_nan=True)
    assert computed == []
    other = less(**params).select(replace(context, round=2))  # the same state of the model, other rows
    assert looked_at(other) != looked_at(expected)
    assert len(computed) == 7


class TestState:
    @pytest.fixture
    def selector(self, tmp_path: Path) -> Callable[[], RowSelector]:
        samples = tiny_dataset(16, distinct=True).samples
        neighbors = np.stack([np.random.default_rng(query).permutation(16) for query in range(3)])
        path = tmp_path / "top.npy"
        NearMatrix(neighbors, np.arange(16), sample_digests(samples), {"encoder": {"name": "e"}}).save(path)
        params = {"indices_path": path, "advance": True}
        return lambda: RowSelector(prefilter={"name": "near", "keep": 0.5, "params": params})

    def test_a_resumed_run_goes_on_with_the_prefilter_s_state(self, tmp_path, selector):
        context = tiny_context(tmp_path, train_dataset=tiny_dataset(16, distinct=True))
        first = selector()
        first.check(context)
        one = first.select(context)
        second = selector()
        second.load_state_dict(first.state_dict())
        two = second.select(replace(context, round=2))
        assert sorted(looked_at(one) + looked_at(two)) == list(range(16))
        assert first.state_dict() == {"prefilter": {"taken": 8}}
        selector().load_state_dict({})  # of a run before there were prefilters

    def test_its_data_is_checked(self, tmp_path, selector):
        with pytest.raises(SelectionError):
            selector().check_data(tiny_dataset(16, seed=9).samples)


def test_close_reaches_the_prefilter(monkeypatch):
    closed: list[str] = []
    monkeypatch.setattr(RdsSelector, "close", lambda self: closed.append("rds"))
    selector = tiny_nice(prefilter=RDS)
    selector.close()
    assert closed == []  # nothing was built yet
    assert selector.prefilter is not None
    selector.close()
    assert closed == ["rds"]


class Repeating(Selector[CandidateConfig]):
    """Chooses the first row again and again."""

    name: ClassVar[str] = "repeating"
    Config = CandidateConfig

    def select(self, context: SelectionContext) -> Selection:
        indices = np.zeros(context.num_samples, dtype=np.int64)
        return Selection(indices, None, self.name, context.step, context.round, repeats=True)


def test_a_prefilter_that_repeats_rows_is_refused(module_context):
    selector = RowSelector(prefilter={"name": "random", "keep": 0.5})
    selector.__dict__["prefilter"] = Repeating()
    with pytest.raises(SelectionError, match="'repeating' returned a wrong selection: indices repeat: 19 of 20"):
        selector.select(module_context)


def test_nice_looks_at_some_rows_too(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="dataflex")
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(16, distinct=True))
    selector = tiny_nice(candidates=12, prefilter=RDS)
    selector.check(context)
    found = selector.select(context)
    selector.close()
    assert len(looked_at(found)) == 6
    assert "nice looks at 6 of 16 rows: drawn by seed and round, rds keeps 0.5 of them" in caplog.text
    assert "(6 looked at)" in repr(found)


def test_rows_that_were_not_looked_at_are_null_on_disk_and_unusable_ones_are_not(tmp_path):
    dataset = tiny_dataset(4, distinct=True)
    scores = np.array([0.5, np.nan, -np.inf, 0.25])
    write_selection(tmp_path / "s.parquet", Selection(np.array([0]), scores, "x", 1, 1), dataset, "task")
    assert pq.read_table(tmp_path / "s.parquet").column("score").to_pylist() == [0.5, None, -np.inf, 0.25]


def test_top_k_takes_no_row_that_was_not_looked_at():
    scores = np.array([np.nan, 1.0, -np.inf, np.nan, 1.0, 2.0])
    assert top_k(scores, 3).tolist() == [5, 1, 4]
    with pytest.raises(SelectionError, match="3 of 6 candidates have a usable score"):
        top_k(scores, 4)


def test_a_dry_run_plans_the_prefilter_and_the_rows_that_are_left(tmp_path):
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(40, seed=3, distinct=True))
    found = dry_run(less(candidates=32, prefilter={"name": "rds", "keep": 0.25}), context)
    assert [(part.name, part.rows) for part in found.parts] == [
        ("prefilter: hidden states of the targets", 3),
        ("prefilter: hidden states", 32),
        ("training gradients", 8),
        ("evaluation gradients", 3),
    ]
    counted = dry_run(less(prefilter={"name": "nice", "keep": 0.5, "params": {"reward": "exact_match"}}), context)
    assert counted.counts == {"prefilter: reward calls": 3 * 4 + 3}  # answers of three prompts, and their references


def test_selection_without_training(tmp_path):
    rows = [{"prompt": f"{a} + 2 =", "completion": str(a + 2)} for a in range(20)]
    found = dataflex.select(
        tiny_lora(tiny_model()),
        tiny_tokenizer(),
        rows,
        rows[:3],
        selector="less",
        num_samples=4,
        template="chatml",
        gradient_type="sgd",
        proj_dim=128,
        candidates=16,
        prefilter={"name": "loss", "keep": 0.5},
    )
    assert "4 of 20 rows by less at step 0 (8 looked at)" in repr(found)
    assert found.to_pandas()["score"].notna().all()
    assert all(note["score"] is not None for note in found.notes())
