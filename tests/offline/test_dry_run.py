from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.offline import dry_run as module
from dataflex.offline.dry_run import Cost, dry_run, predict, spread
from dataflex.selectors.delta_loss import DeltaLossSelector
from dataflex.selectors.less import LessSelector
from dataflex.selectors.random import RandomSelector
from dataflex.testing import tiny_context, tiny_dataset
from helpers.runs import tiny_nice


@given(
    st.lists(st.tuples(st.integers(1, 16), st.integers(5, 100)), min_size=1, max_size=30),
    st.floats(1e-3, 1),
    st.floats(1e-5, 1e-2),
)
def test_a_fit_of_exact_times_is_exact(batches, per_row, per_token):
    shapes = [(rows, rows * length) for rows, length in batches]
    timed = [shapes[place] for place in spread(shapes, 3)]
    seconds = [per_row * rows + per_token * tokens for rows, tokens in timed]
    if len({tokens / rows for rows, tokens in timed}) == 1:
        shapes = [(rows, round(rows * timed[0][1] / timed[0][0])) for rows, _ in shapes]
    expected = sum(per_row * rows + per_token * tokens for rows, tokens in shapes)
    assert predict(timed, seconds, shapes) == pytest.approx(expected, rel=1e-5)


def test_coefficients_are_never_negative():
    shapes = [(4, 40), (4, 400)]
    assert predict(shapes, [2.0, 1.0], [(4, 4000)]) == pytest.approx(1.2)  # 1/2 and 1 in one number, by relative error
    assert predict([(1, 100), (10, 100)], [1.0, 0.5], [(100, 1000)]) == pytest.approx(6.0)


def test_batches_are_spread_from_short_to_long_rows():
    shapes = [(2, 20), (2, 200), (8, 40), (1, 50), (1, 300)]
    assert spread(shapes, 3) == [2, 3, 4]
    assert spread(shapes, 9) == [2, 0, 3, 1, 4]
    assert spread([(3, 3)], 3) == [0]


def test_a_selection_is_predicted_from_three_batches_of_each_side(tmp_path, monkeypatch):
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(40, seed=3), eval_dataset=tiny_dataset(6, seed=9))
    context.model.train()
    before = torch.get_rng_state()
    calls = []
    monkeypatch.setattr(module, "_timed", lambda action: (action(), calls.append(1), Cost(2.0, 1.0))[2])
    selector = LessSelector(proj_dim=256, feature_batch_tokens=150, features_dtype="bfloat16")
    found = dry_run(selector, context)
    training, evaluation = found.parts
    assert (training.name, training.rows, training.batches) == ("training gradients", 40, 9)
    assert (evaluation.name, evaluation.rows, evaluation.batches) == ("evaluation gradients", 6, 2)
    assert found.store_bytes == 46 * 256 * 2
    # once for the check, three or two batches, one shard: every one of them takes 2 seconds here
    assert len(calls) == (1 + 3 + 1) + (1 + 2 + 1)
    assert training.cost.wall == pytest.approx(2 + 18 + 18, rel=0.3)
    assert training.cost.cpu == pytest.approx(training.cost.wall / 2)
    assert found.total == training.cost + evaluation.cost
    assert found.peak_memory > 1 << 20
    assert context.model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == []


def test_answers_are_timed_and_rewards_counted(tmp_path):
    found = dry_run(tiny_nice(mc_samples=3), tiny_context(tmp_path))
    assert found.counts == {"reward calls": 9}
    assert "reward calls: 9 (not timed)" in found.lines()
    names = ["answers", "evaluation gradients", "training gradients"]
    assert [(part.name, part.rows) for part in found.parts] == list(zip(names, (3, 3, 12), strict=True))
    assert found.parts[0].store_bytes == 0
    assert all(part.cost.wall > 0 for part in found.parts)


def test_other_selectors(tmp_path):
    found = dry_run(DeltaLossSelector(loss_batch_tokens=100), tiny_context(tmp_path))
    assert [part.name for part in found.parts] == ["losses"]
    assert found.store_bytes == 12 * 4
    assert found.total.wall > 0
    nothing = dry_run(RandomSelector(), tiny_context(tmp_path))
    assert (nothing.total, nothing.store_bytes) == (Cost(0.0, 0.0), 0)
    assert nothing.lines()[0] == "predicted time: 0.0 s (0.0 s of CPU)"


def test_the_plan_is_what_a_selection_computes(tmp_path, monkeypatch):
    """The batches of the plan are, one for one, those of the selection."""
    context = tiny_context(tmp_path, train_dataset=tiny_dataset(23, seed=3))
    selector = LessSelector(proj_dim=256, save_interval=5, feature_batch_tokens=90)
    planned = []
    for part in selector.plan(context).parts:
        part.prepare()
        planned.append(part.batches())
    from dataflex.gradients.samples import SampleFeatures

    computed: dict[int, list[list[int]]] = {}
    real = SampleFeatures.features

    def features(self, items):
        computed.setdefault(len(self), []).append(list(items))
        return real(self, items)

    monkeypatch.setattr(SampleFeatures, "features", features)
    selector.select(context)
    assert [computed[23], computed[3]] == planned
    assert np.sum([len(batch) for batch in planned[0]]) == 23


def test_what_the_target_will_rest_on_is_said_beforehand(tmp_path):
    context = tiny_context(tmp_path, eval_dataset=tiny_dataset(6, seed=9))
    [_, note] = dry_run(LessSelector(proj_dim=256, aggregate="mean"), context).notes
    assert note.startswith("the target rests on 6 reference answers; its reliability is measured by the selection")
    assert note.endswith("reaches 0.4 where the gradients of two have a cosine of 0.18 on average")
    by_task = dry_run(LessSelector(proj_dim=256, aggregate="task_max"), context)
    assert "the target rests on 6 reference answers in 2 tasks" in by_task.lines()[1]
    selector = tiny_nice(mc_samples=3, candidates=0.5, reference_answer="sample")
    found = dry_run(selector, context)
    selector.close()
    assert found.notes[0] == "nice looks at 6 of 12 rows: drawn by seed and round"
    assert found.notes[2].startswith(
        "the target rests on 6 prompts with 3 answers each and 6 reference answers (sample); its reliability"
    )
    alone = tiny_context(tmp_path, eval_dataset=tiny_dataset(1, seed=9))
    assert "its reliability stays unknown" in dry_run(LessSelector(proj_dim=256, aggregate="mean"), alone).notes[-1]
