"""``scoring``: when whole gradients are compared, when projected features, and that both say so."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dataflex.errors import SelectionError
from dataflex.gradients.reliability import Reliability
from dataflex.gradients.samples import SampleFeatures
from dataflex.offline.dry_run import dry_run
from dataflex.offline.static import score_checkpoints
from dataflex.selectors.gradient import FeatureSelector, GradientConfig, GradientSelector, Targets
from dataflex.selectors.gradient import scoring as module
from dataflex.selectors.gradient.scoring import decide
from dataflex.selectors.less import LessSelector
from dataflex.testing import run_ranks, stepped_optimizer, tiny_context, tiny_dataset, tiny_lora, tiny_model
from helpers.influence import by_task, full_cosines
from helpers.runs import tiny_nice


def eval_context(folder, **changes):
    return tiny_context(folder, **({"eval_dataset": tiny_dataset(6, seed=100)} | changes))


@pytest.mark.parametrize(
    ("aggregate", "rule"),
    [("mean", lambda c, full: full.mean(axis=1)), ("max", lambda c, full: full.max(axis=1)), ("task_max", by_task)],
)
def test_less_scores_exactly(tmp_path, aggregate, rule):
    context = eval_context(tmp_path)
    selection = LessSelector(scoring="exact", aggregate=aggregate).select(context)
    np.testing.assert_allclose(selection.scores, rule(context, full_cosines(context)), rtol=0, atol=1e-6)
    assert selection.indices.tolist() == np.argsort(-selection.scores, kind="stable")[:4].tolist()
    assert selection.report["scoring"] == {"used": "exact", "why": "scoring: exact"}
    assert not (tmp_path / "features").exists()


def test_turns_are_those_of_projected_features(tmp_path):
    context = eval_context(tmp_path, train_dataset=tiny_dataset(12, distinct=True))
    parameters = sum(p.numel() for p in context.model.parameters() if p.requires_grad)
    exact = LessSelector(scoring="exact", aggregate="round_robin").select(context)
    whole = LessSelector(projection="identity", proj_dim=parameters, aggregate="round_robin").select(context)
    assert exact.indices.tolist() == whole.indices.tolist()
    assert whole.report["scoring"]["used"] == "projected"


@pytest.mark.parametrize("params", [{}, {"baseline": "leave_one_out"}, {"mc_samples": 1}])
def test_nice_scores_exactly(tmp_path, params):
    context = tiny_context(tmp_path)
    parameters = sum(p.numel() for p in context.model.parameters() if p.requires_grad)
    exact = tiny_nice(scoring="exact", **params).select(context)
    whole = tiny_nice(projection="identity", proj_dim=parameters, **params).select(context)  # the same answers
    np.testing.assert_allclose(exact.scores, whole.scores, rtol=0, atol=1e-6)
    for half in ("targets", "answers"):
        found, expected = exact.report["reliability"][half], whole.report["reliability"][half]
        assert (found is None) == (expected is None)
        assert found is None or found == pytest.approx(expected, abs=0.05)


def test_nice_without_a_signal_scores_exactly_by_the_references(tmp_path, caplog):
    context = tiny_context(tmp_path)
    found = tiny_nice(scoring="exact", reward=lambda *_: 0.0, on_no_signal="reference").select(context)
    np.testing.assert_allclose(found.scores, full_cosines(context).mean(axis=1), rtol=0, atol=1e-6)
    assert "selecting by the gradient of the reference answers instead" in caplog.text


def test_ranks_score_alike(tmp_path):
    def work(ranks):
        return LessSelector(scoring="exact", save_interval=5).select(
            eval_context(tmp_path / str(ranks.count), ranks=ranks)
        )

    [alone] = run_ranks(1, work)
    for found in run_ranks(3, work):
        np.testing.assert_allclose(found.scores, alone.scores, rtol=0, atol=1e-7)
        assert found.indices.tolist() == alone.indices.tolist()
        assert found.report["reliability"] == alone.report["reliability"]


def test_rows_without_a_usable_gradient_are_left_out_and_named(tmp_path, caplog, monkeypatch):
    real = SampleFeatures.collect

    def collect(self, items, collector):
        found = real(self, items, collector)
        broken, zero = (2, 3) if len(self) == 6 else (4, 7)
        found[[item == broken for item in items]] = math.nan
        found[[item == zero for item in items]] = 0
        return found

    monkeypatch.setattr(SampleFeatures, "collect", collect)
    context = eval_context(tmp_path)
    full = full_cosines(context)
    full[:, 3] = 0
    expected = np.delete(full, 2, axis=1).mean(axis=1)
    expected[[4, 7]] = -np.inf
    selection = LessSelector(scoring="exact", aggregate="mean").select(context)
    np.testing.assert_allclose(selection.scores, expected, rtol=0, atol=1e-6)
    assert selection.report["targets"] == {"total": 6, "answered": 6, "not_finite": ["2"], "zero": ["3"]}
    assert selection.report["candidates"] == {"total": 12, "not_finite": 1, "zero": 1}
    assert "1 evaluation samples have a gradient that is not finite and are left out: 2" in caplog.text
    assert "1 training samples have a gradient of zero and are left out: 7" in caplog.text
    full = np.delete(full_cosines(context), 2, axis=1)
    full[:, 2] = 0
    expected = full.max(axis=1)
    expected[[4, 7]] = -np.inf
    selection = LessSelector(scoring="exact", aggregate="max").select(replace(context, output_dir=tmp_path / "max"))
    np.testing.assert_allclose(selection.scores, expected, rtol=0, atol=1e-6)


def test_targets_without_a_signal_are_refused(tmp_path, monkeypatch):
    real = SampleFeatures.collect
    monkeypatch.setattr(SampleFeatures, "collect", lambda self, *arguments: real(self, *arguments) * 0)
    with pytest.raises(SelectionError, match=r"no evaluation sample carries a signal: .*6 targets"):
        LessSelector(scoring="exact").select(eval_context(tmp_path))
    assert not (tmp_path / "scores").exists()  # no candidate's gradient was computed


def test_scores_of_the_last_round_stay_and_are_used_again(tmp_path, monkeypatch):
    context, selector = eval_context(tmp_path), LessSelector(feature_batch_tokens=150)
    first = selector.select(context)
    shards = sorted((tmp_path / "scores" / "step-2").glob("scores-*"))
    assert len(shards) > 2
    assert max(path.stat().st_size for path in shards) < 600
    lost = int(shards[1].name.split("-")[2].split(".")[0]) - int(shards[1].name.split("-")[1])
    shards[1].unlink()
    real, computed = SampleFeatures.collect, []

    def collect(self, items, collector):
        if len(self) == 12:
            computed.extend(items)
        return real(self, items, collector)

    monkeypatch.setattr(SampleFeatures, "collect", collect)
    again = selector.select(context)
    assert np.array_equal(again.scores, first.scores)
    assert len(set(computed)) == len(computed) == lost < 12
    selector.select(replace(context, step=5, round=2))
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["step-5"]


@pytest.mark.parametrize(
    ("settings", "aggregate", "directions", "used", "why"),
    [
        ({}, "mean", 1, "exact", "aggregate mean has 1 direction"),
        ({}, "task_max", 3, "exact", "aggregate task_max has 3 directions"),
        ({}, "max", 5, "projected", "with aggregate max every target is a direction of its own"),
        ({"proj_dim": 8192}, "mean", 1, "projected", "features are asked for by proj_dim"),
        (
            {"projection": "gaussian", "features_dtype": "float16"},
            "mean",
            1,
            "projected",
            "features are asked for by pro",
        ),
        ({"keep_features": "all"}, "mean", 1, "exact", "aggregate mean has 1 direction"),
        ({"proj_dim": 8192, "scoring": "exact"}, "mean", 1, "exact", "scoring: exact"),
        ({"scoring": "exact"}, "round_robin", 5, "exact", "scoring: exact"),
        ({"scoring": "projected"}, "mean", 1, "projected", "scoring: projected"),
        (
            {},
            "task_max",
            300,
            "projected",
            "300 directions of 1,000,000 parameters take 3.4 GiB, and at most 3 GiB are",
        ),
    ],
)
def test_auto_says_why(settings, aggregate, directions, used, why):
    found = decide(GradientConfig(**settings), aggregate, directions, parameters=1_000_000, candidates=1000)
    assert found.used == used
    assert found.why.startswith(why)


def test_what_exact_scores_cannot_hold_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_VALUES", 10_000)
    context = eval_context(tmp_path)
    with pytest.raises(SelectionError, match=r"scoring 'exact' with aggregate 'max': 6 directions of 4,096 parameters"):
        LessSelector(scoring="exact", aggregate="max").check(context)
    with pytest.raises(SelectionError, match="3 directions of 4,096 parameters"):
        LessSelector(scoring="exact").select(context)
    LessSelector(scoring="exact", aggregate="mean").check(context)
    assert LessSelector().scoring(context).used == "projected"
    monkeypatch.setattr(module, "MOST_VALUES", 100_000)
    with pytest.raises(SelectionError, match="the sums of 20,000 candidates with 6 directions take"):
        decide(GradientConfig(scoring="exact"), "max", 6, parameters=10, candidates=20_000)


def test_keys_without_effect_are_said():
    idle = dict(LessSelector(scoring="exact", proj_dim=128).config.find_idle())
    assert set(idle) == {("proj_dim",), ("projection",), ("features_dtype",), ("keep_features",)}
    assert idle[("proj_dim",)] == "has no effect with scoring exact"
    assert LessSelector(proj_dim=128).config.find_idle() == []


def test_features_that_nobody_makes_cannot_be_kept(tmp_path, caplog):
    LessSelector(keep_features="all").select(eval_context(tmp_path))
    assert "keep_features: all has no effect: exact scoring makes no features" in caplog.text


class Fixed(FeatureSelector):
    """Compares features with a direction that is given."""

    name = "fixed"
    Config = GradientConfig

    def targets(self, context, projector, watch):
        return Targets(torch.ones(1, projector.dim, dtype=torch.float64), "mean", Reliability(None), {})


def test_selectors_that_make_features_themselves_are_projected(tmp_path):
    context = tiny_context(tmp_path)
    found = Fixed().select(context)
    assert found.report["scoring"] == {"used": "projected", "why": "fixed compares features that it makes itself"}
    with pytest.raises(SelectionError, match="fixed compares features that it makes itself: it has no exact scores"):
        Fixed(scoring="exact").check(context)


@pytest.mark.parametrize(
    ("base", "missing"), [(GradientSelector, "expected_targets.*target_gradients"), (FeatureSelector, "targets")]
)
def test_a_selector_without_targets_cannot_be_built(base, missing):
    kind = type("Aimless", (base,), {"name": "aimless", "Config": GradientConfig})
    with pytest.raises(TypeError, match=missing):
        kind()


def test_less_static_refuses_exact_scores(tmp_path):
    with pytest.raises(SelectionError, match="it has no exact scores"):
        score_checkpoints(LessSelector(scoring="exact"), tiny_context(tmp_path), [tmp_path], None)


def test_exact_scores_take_any_betas(tmp_path):
    model = tiny_lora(tiny_model())
    context = eval_context(tmp_path, model=model, optimizer=stepped_optimizer(model, 2, betas=(0.95, 0.9)))
    LessSelector(scoring="exact").check(context)
    found = LessSelector(scoring="exact").select(context)
    np.testing.assert_allclose(found.scores, by_task(context, full_cosines(context)), rtol=0, atol=1e-6)


def test_a_dry_run_predicts_the_exact_pass(tmp_path):
    context = eval_context(tmp_path)
    found = dry_run(LessSelector(save_interval=5), context)
    assert found.store_bytes == 12 * (1 + 3) * 8
    assert found.lines()[0] == "scoring: exact (aggregate task_max has 3 directions)"
    assert [(part.name, part.rows) for part in found.parts] == [("training gradients", 12), ("evaluation gradients", 6)]
    assert all(part.cost.wall > 0 for part in found.parts)
    answers = dry_run(tiny_nice(scoring="exact"), tiny_context(tmp_path))
    assert answers.store_bytes == 12 * 2 * 8
    assert list(tmp_path.iterdir()) == []
