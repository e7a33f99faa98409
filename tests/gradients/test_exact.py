"""Exact scores against float64 by hand, and what must not change them."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataflex.data.collate import collate
from dataflex.gradients.collectors import WholeRows
from dataflex.gradients.exact import ExactTargets, UnitSums, cosines_of, exact_scores, exact_sums, exact_targets
from dataflex.gradients.filling import fill_apart
from dataflex.gradients.layout import consecutive
from dataflex.gradients.moments import adam_moments
from dataflex.gradients.plain import sample_gradient
from dataflex.gradients.reliability import target_reliability
from dataflex.gradients.samples import SampleFeatures
from dataflex.gradients.store import ScoreStore
from dataflex.projection.projector import Projector
from dataflex.testing import run_ranks, stepped_optimizer, tiny_context, tiny_dataset
from helpers.families import family_lora, family_model
from helpers.processes import launch
from helpers.scripts import ROOT

TRAIN, TARGETS = tiny_dataset(9, seed=0), tiny_dataset(5, seed=100)
CPU = torch.device("cpu")
PLACES = [0, 1, 0, 0, 1]
"""Two tasks."""


def gradients(context, dataset, **settings):
    defaults = {"gradient_type": "sgd", "adam_variant": "adamw", "batch_tokens": 100}
    return SampleFeatures(context, dataset, Projector(256), **(defaults | settings))


def found_targets(context, places=PLACES, **settings):
    features = gradients(context, context.eval_dataset, **settings)
    return exact_targets(context, features, [[1.0]] * len(places), places, seed=1, description="targets")


def found_sums(context, targets, folder, save_rows=4, **settings):
    features = gradients(context, context.train_dataset, **settings)
    return exact_sums(context, features, targets, folder, {}, save_rows=save_rows, description="sums")


def in_float64(context, variant):
    """``(n, d)`` products of unit candidates with the mean unit targets of each place, all in float64."""
    model = copy.deepcopy(context.model).double()

    def rows(dataset):
        return torch.stack([sample_gradient(model, collate([e], 2), context.autocast) for e in dataset])

    g, targets = rows(context.train_dataset), rows(context.eval_dataset)
    if variant != "sgd":
        moments = adam_moments(context.model, context.optimizer)
        (b1, b2), eps, t = moments.betas, moments.eps, moments.step + 1
        m = b1 * moments.exp_avg.double() + (1 - b1) * g
        v = b2 * moments.exp_avg_sq.double() + (1 - b2) * g * g
        if variant == "adamw":
            g = m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps)
        elif variant == "less":
            g = m / (v + eps).sqrt()
        else:
            g = g / ((v / (1 - b2**t)).sqrt() + eps)
    g, targets = (values / values.norm(dim=1, keepdim=True) for values in (g, targets))
    means = torch.stack([targets[[place == d for place in PLACES]].mean(dim=0) for d in (0, 1)])
    return (g @ means.T).numpy()


@pytest.mark.parametrize("variant", ["adamw", "less", "second_moment", "sgd"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("make", [family_lora, family_model], ids=["lora", "full"])
def test_exact_scores_are_those_of_whole_gradients_in_float64(tmp_path, make, family, variant):
    model = make(family)
    context = tiny_context(
        tmp_path, model=model, optimizer=stepped_optimizer(model, 2), train_dataset=TRAIN, eval_dataset=TARGETS
    )
    kind = {"gradient_type": "sgd"} if variant == "sgd" else {"gradient_type": "adam", "adam_variant": variant}
    sums = found_sums(context, found_targets(context), tmp_path / "s", **kind)
    expected = in_float64(context, variant)
    np.testing.assert_allclose(cosines_of(sums).numpy(), expected, rtol=0, atol=1e-6)
    scores = exact_scores(sums)
    np.testing.assert_allclose(scores.values, expected.max(axis=1), rtol=0, atol=1e-6)
    assert scores.not_finite == scores.zero == []


def test_batches_order_threads_and_shards_change_next_to_nothing(tmp_path):
    context = tiny_context(tmp_path, train_dataset=TRAIN, eval_dataset=TARGETS)
    adam = {"gradient_type": "adam"}
    expected = cosines_of(found_sums(context, found_targets(context), tmp_path / "a", **adam))
    for number, (tokens, save_rows, threads) in enumerate([(1, 9, 1), (1000, 9, 2), (70, 3, 4)]):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            targets = found_targets(context, batch_tokens=tokens)
            sums = found_sums(context, targets, tmp_path / str(number), save_rows, batch_tokens=tokens, **adam)
        finally:
            torch.set_num_threads(before)
        torch.testing.assert_close(cosines_of(sums), expected, rtol=0, atol=1e-7)
    order = [4, 2, 0, 8, 1, 6, 3, 7, 5]
    other = replace(context, train_dataset=TRAIN.select(order), eval_dataset=TARGETS.select([4, 3, 2, 1, 0]))
    targets = found_targets(other, PLACES[::-1])
    sums = found_sums(other, replace(targets, vectors=targets.vectors), tmp_path / "order", **adam)
    torch.testing.assert_close(cosines_of(sums), expected[order], rtol=0, atol=1e-7)


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=30), st.randoms())
def test_sums_of_unit_vectors_do_not_depend_on_their_order(seeds, random):
    rows = [torch.randn(1, 50, generator=torch.Generator().manual_seed(seed)) * 10.0 ** (seed % 9) for seed in seeds]

    def total(order):
        sums = UnitSums(1, 50, len(rows), CPU)
        for number in order:
            sums.add(0, rows[number], [1.0])
        return sums.means([len(rows)])

    order = list(range(len(rows)))
    expected = total(order)
    random.shuffle(order)
    assert torch.equal(total(order), expected)
    exact = torch.cat([row.double() / row.double().norm() for row in rows]).mean(dim=0)
    torch.testing.assert_close(expected[0].double(), exact, rtol=6e-8, atol=1e-14)


def test_a_vector_may_come_in_parts_and_may_have_no_direction():
    sums = UnitSums(2, 3, 4, CPU)
    rows = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.0, -1.0]])
    whole = 0.25 * rows[0].double() - 2 * rows[1].double()
    assert sums.add(1, rows, [0.25, -2.0]) == pytest.approx(float(whole @ whole))
    assert sums.add(1, rows[:1] * 0, [1.0]) == 0
    assert math.isnan(sums.add(1, rows[:1] * math.nan, [1.0]))
    assert sums.add(1, torch.full((1, 3), 1e38), [1.0]) == pytest.approx(3e76)
    found = sums.means([0, 2])
    assert not found[0].any()
    expected = (whole / whole.norm() + torch.full((3,), 3**-0.5, dtype=torch.float64)) / 2
    torch.testing.assert_close(found[1].double(), expected, rtol=1e-7, atol=0)


def test_sketches_tell_the_reliability_of_whole_gradients(tmp_path):
    targets = tiny_dataset(16, seed=100)
    context = tiny_context(tmp_path, eval_dataset=targets)
    found = found_targets(context, [0] * 16)
    features, p = gradients(context, targets), found.vectors.shape[1]
    whole = torch.cat([features.collect([row], lambda rows: WholeRows(torch.empty(rows, p))) for row in range(16)])
    sketched = target_reliability([(0, found.sketches)], 16, seed=5).targets
    expected = target_reliability([(0, whole)], 16, seed=5).targets
    assert sketched == pytest.approx(expected, abs=0.05)
    np.testing.assert_allclose(found.squares, whole.double().square().sum(dim=1).numpy(), rtol=1e-5)


def test_rows_without_a_direction_have_no_score():
    sums = torch.tensor([[4.0, 1.0, -1.0], [0.0, 0.0, 0.0], [math.nan, math.nan, math.nan], [1.0, 0.25, 0.5]])
    scores = exact_scores(sums.double())
    assert scores.values.tolist() == [0.5, -math.inf, -math.inf, 0.5]
    assert (scores.not_finite, scores.zero) == ([2], [1])


def rows_of(numbers):
    return torch.tensor([[float(number), number / 3] for number in numbers], dtype=torch.float64)


@pytest.mark.parametrize("shared", [True, False])
def test_ranks_fill_a_store_and_find_what_each_of_them_has(tmp_path, shared):
    def fill(ranks, facts, computed):
        folder = tmp_path if shared else tmp_path / str(ranks.index)

        def compute(rows):
            computed.extend(rows)
            return rows_of(rows)

        return fill_apart(
            lambda: ScoreStore(folder, facts, consecutive(11, 2), 2),
            torch.nn.Linear(1, 1),
            compute,
            prepare=lambda: None,
            description="x",
            ranks=ranks,
        )

    computed: list[int] = []
    for found in run_ranks(3, lambda ranks: fill(ranks, {"a": 1}, computed)):
        assert torch.equal(found, rows_of(range(11)))
    assert sorted(computed) == list(range(11))
    computed.clear()
    for found in run_ranks(2, lambda ranks: fill(ranks, {"a": 1}, computed)):
        assert torch.equal(found, rows_of(range(11)))
    # Shards 2 and 5 lie where the third rank wrote them, which is no folder of these two.
    assert sorted(computed) == ([] if shared else [4, 5, 10])
    damaged = sorted(tmp_path.rglob("scores-00000000-*.safetensors"))[0]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    computed.clear()
    run_ranks(2, lambda ranks: fill(ranks, {"a": 1}, computed))
    assert sorted(computed) == [0, 1]
    computed.clear()
    run_ranks(2, lambda ranks: fill(ranks, {"a": 2}, computed))
    assert sorted(computed) == list(range(11))


def test_ranks_share_the_targets(tmp_path):
    def work(ranks):
        context = tiny_context(tmp_path, eval_dataset=TARGETS, ranks=ranks)
        return found_targets(context, batch_tokens=60)

    [alone] = run_ranks(1, work)
    for found in run_ranks(3, work):
        assert isinstance(found, ExactTargets)
        assert torch.equal(found.vectors, alone.vectors)
        assert torch.equal(found.sketches, alone.sketches)
        assert np.array_equal(found.squares, alone.squares)
        assert found.counts == [3, 2]


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch was built without gloo")
def test_processes_without_a_folder_in_common_score_like_one(tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "helpers" / "exact_ranks.py")
    for processes in (1, 2):
        launch(processes, script, str(tmp_path))
    one, *two = (
        json.loads((tmp_path / name / "found.json").read_text(encoding="utf-8"))
        for name in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert one["shards"] == sum(found["shards"] for found in two) > 3
    assert abs(two[0]["shards"] - two[1]["shards"]) <= 1
    for found in two:
        assert found["indices"] == one["indices"]
        assert found["reliability"] == one["reliability"]
        np.testing.assert_allclose(found["scores"], one["scores"], rtol=0, atol=1e-7)
    assert two[0]["scores"] == two[1]["scores"]
